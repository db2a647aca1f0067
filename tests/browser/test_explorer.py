"""The explorer in a real browser: what it draws is what PyTorch computes, and every control moves something."""

import numpy as np
import pytest
import torch

from aeutils.course import explorer, runner
from aeutils.course.settings import digit_models, face_models
from aeutils.data import load_frey_faces, load_mnist
from aeutils.latent import different_pairs, interpolate

GREY = 1 / 255


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    try:
        load_frey_faces(source="frey")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    path = explorer.write(tmp_path_factory.mktemp("explorer") / "explorer.html")
    assert path.stat().st_size < 8e6
    return path


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(request, path, browser):
    page, said = browser.new_page(viewport=dict(zip(("width", "height"), request.param))), []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: said.append(asked.url) if asked.url.startswith("http") else None)
    page.goto(path.as_uri())
    page.wait_for_function("sheet.complete")
    page.screenshot(path=path.with_name(f"explorer_{request.param[0]}.png"), full_page=True)
    yield page
    assert said == []  # no error, no request
    page.close()


def pixels(page, name):
    return page.evaluate(f"$('{name}').toDataURL()")


def parameters(number):
    return runner.defaults(next(runner.NOTEBOOKS.glob(f"{number}_*.ipynb")))


def test_the_face_is_the_one_that_pytorch_decodes(page):
    setting = {k: v for k, v in parameters("04").items() if k in (
        "face_latent_dim", "face_epochs", "beta", "reach", "split", "split_seed", "checkpoints", "device")}  # fmt: skip
    trained = face_models(("vae",), seeds=[0], faces="frey", train_images=None, val_images=None, **setting)
    vae = trained["vae"][0].model.cpu()
    for z in 1.5 * torch.randn(5, vae.latent_dim, generator=torch.Generator().manual_seed(0)):
        drawn = page.evaluate("z => Array.from(decoder(faceNet, Float32Array.from(z), face))", z.tolist())
        with torch.no_grad():
            assert np.abs(np.array(drawn) - vae.decode(z[None]).flatten().numpy()).max() < GREY


def test_the_blends_are_those_that_pytorch_decodes(page):
    setting = {k: v for k, v in parameters("02").items() if k in (
        "latent_dim", "lam_sae", "lam_cae", "epochs", "n_train", "checkpoints", "device")}  # fmt: skip
    mnist = load_mnist()
    trained = digit_models(("sae", "cae"), seeds=[0], images=mnist.train_images, **setting)
    x1, x2 = (mnist.test_images[index] for index in different_pairs(mnist.test_labels, 20, 0)[3:4].unbind(1))
    page.evaluate("$('pair').value = 3; $('alpha').value = 8; showPair()")
    for name in ("sae", "cae"):
        way = interpolate(trained[name][0].model.cpu(), x1, x2, [0.4])
        shown = page.evaluate(
            """name => { const c = $('blend-' + name).getContext('2d').getImageData(0, 0, 57, 28).data;
                         return Array.from({length: 57 * 28}, (_, i) => c[4 * i] / 255) }""",
            name,
        )
        shown = np.array(shown).reshape(28, 57)
        # a canvas rounds to whole greys: half a grey more than the computed value may be off
        assert np.abs(shown[:, :28] - way.x_blend[0, 0, 0].numpy()).max() < 1.5 * GREY
        assert np.abs(shown[:, 29:] - way.x_linear[0, 0, 0].numpy()).max() < 1.5 * GREY


def test_a_slider_moves_the_face_by_mouse_and_by_key(page):
    first, slider = pixels(page, "face"), page.locator("#units input").first
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "0.1" and pixels(page, "face") != first
    slider.fill("2.5")
    moved = pixels(page, "face")
    page.click("#random")
    assert pixels(page, "face") != moved
    page.click("#mean")
    assert pixels(page, "face") == first
    page.click("#pose")
    assert pixels(page, "face") != first
    page.click("#walk")
    page.wait_for_timeout(300)
    walking = pixels(page, "face")
    page.wait_for_timeout(300)
    assert pixels(page, "face") != walking
    page.click("#walk")


def test_alpha_moves_both_models_and_ends_agree(page):
    page.locator("#alpha").fill("8")
    before, said = pixels(page, "blend-cae"), page.inner_text("#said-cae")
    page.locator("#alpha").focus()
    page.keyboard.press("ArrowRight")
    assert pixels(page, "blend-cae") != before and page.inner_text("#said-cae") != said
    page.locator("#alpha").fill("0")
    assert "∞" in page.inner_text("#said-sae") and "relative 0.000" in page.inner_text("#said-cae")


def test_the_map_shows_the_digit_pointed_at(page):
    page.locator("#map").scroll_into_view_if_needed()
    page.locator("#map").hover()
    said, digit = page.inner_text("#said"), pixels(page, "digit")
    assert said.startswith("test image")
    page.locator("#map").focus()
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#said") != said and pixels(page, "digit") != digit


def test_thirty_faces_and_pairs_a_second(page):
    for work in ("setFace(normal)", "showPair()"):
        page.evaluate(f"for (let i = 0; i < 10; i++) {work}")  # let the browser compile it
        took = page.evaluate(f"const t{len(work)} = performance.now(); for (let i = 0; i < 30; i++) {work};"
                             f"(performance.now() - t{len(work)}) / 30")  # fmt: skip
        assert took < 1000 / 30


def test_the_twenty_pairs_are_those_of_notebook_02():
    labels = load_mnist().test_labels
    drawn = parameters("02")
    longer = different_pairs(labels, drawn["n_pairs"] + drawn["n_interval_pairs"], drawn["pair_seed"])
    assert torch.equal(different_pairs(labels, 20, drawn["pair_seed"]), longer[:20])
