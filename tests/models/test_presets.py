import pytest
import torch

from style_aligned import Style, generate
from style_aligned.models.checkpoints.schedule import Schedule
from style_aligned.models.mini import Mini
from style_aligned.models.presets import PRESETS, use_preset
from style_aligned.models.solvers import make_solver

TIMESTEPS = {
    "lcm": [999, 759, 499, 259],
    "lightning": [999, 749, 499, 249],
    "turbo": [999],
    "hyper": [999, 874, 749, 624, 499, 374, 249, 124],
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_start_at_the_last_timestep_and_draw_without_guidance(name: str, model: Mini) -> None:
    model.solver = Schedule().solver()
    preset = use_preset(model, name)
    solver = make_solver(model, preset.num_inference_steps)
    assert solver.timesteps.tolist() == TIMESTEPS[name]
    style = Style.from_prompt(
        model, "a fox", size=(64, 64), num_inference_steps=preset.num_inference_steps,
        condition_scale=preset.condition_scale,
    )  # fmt: skip
    rows = list[int]()
    hook = model.unet.register_forward_hook(lambda unet, arguments, output: rows.append(len(arguments[0])))
    (image,) = generate(model, style, ["a cat"])
    hook.remove()
    assert set(rows) == {1}
    assert image.latents.isfinite().all()


def test_one_preset_after_another(model: Mini) -> None:
    model.solver = Schedule(beta_end=0.02).solver()
    use_preset(model, "lcm")
    use_preset(model, "turbo")
    assert model.solver.timesteps.tolist() == TIMESTEPS["turbo"]


def test_what_has_no_preset(model: Mini) -> None:
    with pytest.raises(ValueError, match="expected a model from a checkpoint for the preset lcm, got one with DDIM"):
        use_preset(model, "lcm")
    with pytest.raises(ValueError, match="expected preset to be one of lcm, lightning, turbo, hyper, got 'fast'"):
        use_preset(model, "fast")


def test_a_model_that_predicts_velocity_needs_a_solver_that_does(model: Mini) -> None:
    model.prediction_type = "v_prediction"
    try:
        with pytest.raises(
            ValueError, match="expected a solver for a model that predicts 'v_prediction', got DDIM, whi"
        ):
            make_solver(model, 3)
        model.solver = Schedule(prediction_type="v_prediction").solver()
        assert torch.equal(make_solver(model, 3).timesteps, torch.tensor([667, 334, 1]))
    finally:
        del model.prediction_type
