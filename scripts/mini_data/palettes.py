"""The colours that the hidden factors are drawn from: many, well apart, and some of them dark."""

GROUNDS = {
    "cream": "#f6e7c8",
    "yellow": "#ffd23f",
    "orange": "#f58a33",
    "coral": "#f2675f",
    "crimson": "#a81e3c",
    "pink": "#f9a9c9",
    "magenta": "#c4308c",
    "lilac": "#b9a4ec",
    "violet": "#57309f",
    "navy": "#182857",
    "blue": "#2d6be0",
    "sky": "#8fd3f7",
    "teal": "#10807f",
    "mint": "#a3e6c3",
    "green": "#3a9d4a",
    "forest": "#17432f",
}

PAPERS = ("#fbf8f0", "#f6e3b4", "#ffd95e", "#f9b27c", "#f7b6c6", "#d3c2f3", "#aedcf5", "#aee5c8", "#cfd4d8", "#d8c39a")
INKS = ("#15151a", "#1a2a6c", "#a5142f", "#0f5a3a", "#5a1f8a", "#5c2e12", "#0d5c75", "#b5387a")
SPOTS = ("#ff6b57", "#ffc62e", "#2fb5a5", "#4f8df7", "#f576b4", "#8ed04b", "#a67bf0", "#ff9340")

BLUEPRINTS = (
    "#1c4fa0", "#12306e", "#0f6e94", "#11706a", "#1e6b3c", "#5b2d8f", "#8a1f4c", "#9c3a22", "#6b4a2a", "#33414e",
)  # fmt: skip
CHALKS = ("#ffffff", "#cfeeff", "#fff2b8", "#ffd6e4", "#d3ffd9")

NEONS = ("#ff2fa0", "#ff3b3b", "#ff8a1f", "#ffe23d", "#5dff4a", "#22ffd0", "#27c4ff", "#4a6bff", "#b44dff", "#fff1d6")
NIGHTS = ("#0b0a12", "#0a1030", "#1f0a2e", "#2b0a16", "#06231f", "#1d1209")

METALS = {
    "gold": ("#1f0f00", "#7a4706", "#c98a12", "#f6c945", "#ffeb9c", "#fffdf0"),
    "silver": ("#0f1115", "#4a4f58", "#8b929c", "#c6ccd4", "#eef1f5", "#ffffff"),
    "copper": ("#1c0600", "#6e2509", "#b4501f", "#e58a55", "#ffc7a0", "#fff3ea"),
    "verdigris": ("#02140f", "#0d4a3c", "#2a8a70", "#63c2a0", "#b2ead2", "#f2fff9"),
    "blue steel": ("#030a1c", "#12305f", "#2f62a8", "#6ea2dd", "#bcdcfa", "#f7fbff"),
    "rose gold": ("#22060c", "#7c2c3e", "#c26478", "#eda0a9", "#ffd5d5", "#fff7f5"),
    "iron": ("#000000", "#17171b", "#33343b", "#5a5c66", "#9a9ca8", "#f2f2f8"),
}

LIGHTS = {"white": "#ffffff", "warm": "#ffd9a0", "cool": "#a9c8ff", "rose": "#ffb3d1"}

PIXEL_TONES = {
    "handheld": ("#0f330f", "#37803a", "#86b414", "#dcec4a"),
    "dusk": ("#2b0f54", "#ab1f65", "#ff4f69", "#ffe0a3"),
    "ice": ("#101a4a", "#2c5fb8", "#6cc4ee", "#f0fbff"),
    "ember": ("#2a0508", "#a8261a", "#ee7722", "#ffe99a"),
    "candy": ("#3a1c66", "#b04ccf", "#ff9ad5", "#fff3d6"),
    "sepia": ("#2a1a10", "#7a5230", "#c99f66", "#fbeccb"),
}
"""Four tones from dark to bright; the picture's brightness is mapped onto them."""
