// shared by the parts of the page that are HTML: what is clicked there goes to the server as an event
element.addEventListener('click', async (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  const data = button.dataset;
  if (data.image !== undefined) trigger('pick', { image: Number(data.image) });
  else if (data.set !== undefined) trigger('enter', { set: data.set });
  else if (data.style !== undefined) trigger('pick', { style: data.style });
  else if (data.restore !== undefined) {
    trigger('restore', { name: data.restore, seed: data.seed === undefined ? null : Number(data.seed) });
  } else if (data.copy !== undefined) {
    if (navigator.clipboard) await navigator.clipboard.writeText(data.copy);
    else {  // pages that are not from this machine have no clipboard without TLS
      const area = document.createElement('textarea');
      area.value = data.copy;
      document.body.append(area);
      area.select();
      document.execCommand('copy');
      area.remove();
    }
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy settings'; }, 2000);
  }
});
element.addEventListener('input', (event) => {
  const compare = event.target.closest('.compare');
  if (compare) compare.style.setProperty('--at', `${event.target.value}%`);
});
const reveal = () => {
  const large = element.querySelector('.large');
  if (large && window.innerWidth < 700) large.scrollIntoView({ block: 'start', behavior: 'smooth' });
};
reveal(); // the first image that is opened is there before this script
watch('value', () => {
  const address = element.querySelector('[data-address]');
  if (address) {
    const query = address.dataset.address;
    history.replaceState(null, '', query ? `?${query}` : location.pathname);
  }
  reveal();
});
