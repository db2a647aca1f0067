"""The explorer in a real browser: what it draws is what PyTorch computes, and every control moves something."""

import numpy as np
import pytest
import torch

from aeutils import plots
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
        "latent_dim", "lam_sae", "lam_cae", "sigma_dae", "epochs", "n_train", "checkpoints", "device")}  # fmt: skip
    mnist = load_mnist()
    trained = digit_models(("sae", "cae"), seeds=[0], images=mnist.train_images, **setting)
    x1, x2 = (mnist.test_images[index] for index in different_pairs(mnist.test_labels, 20, 0)[3:4].unbind(1))
    page.evaluate("$('pair').value = 3; $('alpha').value = 8; showPair()")
    for name in ("sae", "cae"):
        way = interpolate(trained[name][0].model.cpu(), x1, x2, [0.4])
        shown = page.evaluate(
            """name => { const c = $('blend-' + name).getContext('2d').getImageData(0, 0, 86, 28).data;
                         return Array.from({length: 86 * 28}, (_, i) => c[4 * i] / 255) }""",
            name,
        )
        shown = np.array(shown).reshape(28, 86)
        codes = page.evaluate(
            """name => { const { net, codes, style } = panels.find(p => p.model.name === name);
                         const width = data.pairs.width, at = n => codes.subarray((63 + n) * width, (64 + n) * width);
                         const first = at(20), second = at(0);
                         const line = second.map((v, j) => .4 * first[j] + .6 * v);
                         return [at(8), line].map(h => Array.from(decoder(net, h, style))) }""",
            name,
        )
        for drawn, decoded in zip(codes, (way.x_blend, way.x_linear)):
            assert np.abs(np.array(drawn) - decoded.flatten().numpy()).max() < GREY
        # a canvas rounds to whole greys: half a grey more than the computed value may be off
        blend = (0.4 * x1 + 0.6 * x2)[0, 0].numpy()
        for left, image in (
            (0, blend),
            (29, way.x_blend[0, 0, 0].numpy()),
            (58, way.x_linear[0, 0, 0].numpy()),
        ):
            assert np.abs(shown[:, left : left + 28] - image).max() < 1.5 * GREY


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


def test_every_slider_moves_the_face_and_only_its_own_unit(page):
    sliders, mean = page.locator("#units input"), pixels(page, "face")
    assert sliders.count() == len(page.evaluate("face.units.map(u => u.unit)")) == 20
    for k in range(20):
        sliders.nth(k).fill("2")
        assert pixels(page, "face") != mean
        values = page.evaluate("Array.from(document.querySelectorAll('#units input'), i => +i.value)")
        assert values == [2.0 if i == k else 0.0 for i in range(20)]
        unit = int(sliders.nth(k).get_attribute("id").removeprefix("unit-"))
        assert page.evaluate("Array.from(z)") == [2.0 if j == unit else 0.0 for j in range(20)]
        sliders.nth(k).fill("0")
        assert pixels(page, "face") == mean
    kl = page.evaluate("face.units.map(u => u.kl)")
    assert kl == sorted(kl, reverse=True)


def drag(page, selector):
    """(start, end) in ms of each frame drawn while the mouse drags a slider from end to end."""
    slider = page.locator(selector).first
    slider.scroll_into_view_if_needed()
    slider.evaluate("""input => {  // listeners before and after the one that draws
      window.frames_drawn = []; let start = 0;
      document.addEventListener("input", () => start = performance.now(), true);
      input.addEventListener("input", () => frames_drawn.push([start, performance.now()])); }""")
    box = slider.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 5, y)
    page.mouse.down()
    for k in range(60):
        page.mouse.move(box["x"] + 5 + (box["width"] - 10) * k / 59, y)
    page.mouse.up()
    return np.array(page.evaluate("frames_drawn"))


def test_dragging_draws_thirty_frames_a_second(page):
    frames = drag(page, "#units input")
    assert len(frames) > 30 and (len(frames) - 1) / (frames[-1, 1] - frames[0, 1]) >= 0.03
    frames = drag(page, "#alpha")  # its 20 steps come as slowly as the mouse moves
    assert len(frames) > 15 and np.diff(frames).mean() < 1000 / 30


def test_the_pair_sweeps_until_it_is_stopped(page):
    before = page.locator("#alpha").input_value()
    page.click("#sweep")
    page.wait_for_function("before => $('alpha').value !== before", arg=before)
    page.click("#sweep")
    kept = page.locator("#alpha").input_value()
    page.wait_for_timeout(300)
    assert page.locator("#alpha").input_value() == kept


CONTRAST = """() => {
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = rgb => {
    const [r, g, b] = rgb.match(/[\\d.]+/g).map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const page = light(getComputedStyle(document.body).backgroundColor);
  return Math.min(...[...document.querySelectorAll("h1, h2, h3, p, label, .soft")].map(e => {
    const ink = light(getComputedStyle(e).color);
    return (Math.max(ink, page) + .05) / (Math.min(ink, page) + .05);
  }));
}"""
NAMES = """() => [...document.querySelectorAll("canvas, input, button, select")].map(
  e => e.ariaLabel || e.textContent || [...(e.labels || [])].map(l => l.textContent).join(""))"""
SEEN = """() => {
  const c = $("map").getContext("2d").getImageData(0, 0, 900, 900).data, seen = new Set();
  const hex = v => v.toString(16).padStart(2, "0");
  for (let i = 0; i < c.length; i += 4) seen.add("#" + hex(c[i]) + hex(c[i + 1]) + hex(c[i + 2]));
  return [...seen];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(page, scheme):
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate(CONTRAST) >= 4.5
    assert all(name.strip() for name in page.evaluate(NAMES))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_map_has_the_digits_colours_of_the_notebooks(page):
    assert page.evaluate("map.colours") == plots.DIGITS
    drawn = page.evaluate(SEEN)
    assert {colour.lower() for colour in plots.DIGITS} <= set(drawn)


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
