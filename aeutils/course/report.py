"""What a reader opens after a run: each notebook as HTML that needs no network, its figures, and index.html."""

import hashlib
import json
import re
from base64 import b64decode
from html import escape
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import nbformat
from latex2mathml.converter import convert as to_mathml
from nbconvert import HTMLExporter, TemplateExporter
from nbconvert.filters import DataTypeFilter, Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from aeutils.course.readme import CHOSEN, CODES, FACE, MODELS, figure, measured
from aeutils.course.results import compare, load_reference
from aeutils.course.settings import seeds_of
from aeutils.data import write_atomically

FONT = "math.ttf"
PLAIN = (  # what latex2mathml does not know, as what it does
    (r"\{(aligned|equation\*?|gathered)\}", "{align*}"),
    (r"\\[lr]Vert\b", r"\\|"),
    (r"\\[lr]vert\b", "|"),
    (r"(\\[bB]igg?[lrm]?)\\\|", r"\1‖"),
    (r"\\operatorname\*", r"\\operatorname"),
    (r"\\arg\b", r"\\operatorname{arg}"),
)
# of pandas and IPython
OBSOLETE = re.compile(r"""<style.*?</style>| (?:border|halign|valign)="\w+"(?=[^<]*>)""", re.S)
STYLE = Path(__file__).with_name("report.css")


class Renderer(IPythonRenderer):
    """Markdown with its formulas as MathML, which browsers draw without a script."""

    def block_math(self, body):
        return f'<span class="formula">{mathml(body, "block")}</span>'

    def inline_math(self, body):
        return mathml(body, "inline")

    def latex_environment(self, name, body):
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")


def mathml(latex, display):
    """A formula as MathML; as its source where it cannot be converted."""
    source = latex.strip()
    for pattern, plain in PLAIN:
        source = re.sub(pattern, plain, source)
    try:
        return to_mathml(source, display=display)
    except Exception:  # latex2mathml raises what its parser runs into
        return f"<code>{escape(latex)}</code>"


def markdown(source, trusted=True):
    return MarkdownWithMath(renderer=Renderer(escape=not trusted, allow_harmful_protocols=trusted)).render(
        source
    )


def write(folder):
    """Write NN_title.html, figures/ and index.html of a run folder; return the path of index.html."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    (folder / "figures").mkdir(exist_ok=True)
    for old in (folder / "figures").glob("figure_*.png"):
        old.unlink()
    font = Path(find_spec("ziamath").origin).with_name("fonts") / "STIXTwoMath-Regular.ttf"
    write_atomically(folder / FONT, font.read_bytes())
    chapters = []
    for path in (folder / f"{stem}.ipynb" for stem in sorted(metrics["seconds"])):
        if not path.exists():
            continue
        notebook = nbformat.read(path, as_version=4)
        title = next(
            (
                line[2:]
                for cell in notebook.cells[:1]
                for line in cell.source.splitlines()
                if line.startswith("# ")
            ),
            path.stem,
        )
        figures = extract_figures(notebook, folder / "figures")
        write_atomically(path.with_suffix(".html"), page(title, notebook_html(notebook)).encode())
        chapters.append((path.stem, title, figures))
    index = folder / "index.html"
    write_atomically(index, page("Autoencoders: the report of a run", index_html(metrics, chapters)).encode())
    return index


def extract_figures(notebook, folder):
    """Write the notebook's figures as figure_N.png; return [(file name, alternative text)]."""
    found = []
    for cell in notebook.cells:
        for out in cell.get("outputs", ()):
            number = out.get("metadata", {}).get("aeutils", {}).get("figure")
            if number and re.fullmatch(r"[\w.]+", number):
                name = f"figure_{number}.png"
                write_atomically(folder / name, b64decode(out["data"]["image/png"]))
                found.append((name, out["metadata"]["image/png"]["alt"]))
    return found


def notebook_html(notebook):
    """The notebook's cells as HTML. Markdown that a cell displays may hold what a parameter says: it is escaped."""
    strip_widgets(notebook)
    for cell in notebook.cells:
        for out in cell.get("outputs", ()):
            data = out.get("data", {})
            if "text/markdown" in data:
                out["data"] = {"text/html": markdown(data["text/markdown"], trusted=False)}
            elif "text/html" in data:
                data["text/html"] = re.sub(OBSOLETE, "", data["text/html"])
    exporter = HTMLExporter(template_name="basic")
    exporter.register_filter("markdown2html", markdown)
    # it is asked for code alone, which Pygments has escaped, and would take seconds
    exporter.register_filter("clean_html", lambda html: html)
    exporter.register_filter("highlight_code", Highlight2HTML(pygments_lexer="ipython3"))
    exporter.register_filter("filter_data_type", DataTypeFilter(parent=exporter))
    # HTMLExporter's own would parse the page once more, to add what `page` or `show` have given it
    body = TemplateExporter.from_notebook_node(exporter, notebook)[0]
    top = (
        '<a href="index.html">The run\'s report</a> · '
        '<label><input type="checkbox" id="hide-code"> hide the code</label>'
    )
    return f"<p>{top}</p>\n{body}"


def strip_widgets(notebook):
    """Drop progress bars drawn as widgets: without JupyterLab they are empty."""
    notebook.metadata.pop("widgets", None)
    view = "application/vnd.jupyter.widget-view+json"
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [out for out in cell.outputs if view not in out.get("data", {})]


def page(title, body):
    style = STYLE.read_text(encoding="utf-8").replace("FONT", FONT) + HtmlFormatter().get_style_defs(
        ".highlight"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def index_html(metrics, chapters):
    """The body of index.html: verdicts, a figure a notebook, the figures beside the reference, how it was run."""
    rows, off = comparison(metrics)
    reference = load_reference()
    state = f'<span class="off">{len(off)} out of tolerance</span>' if off else "none out of tolerance"
    known = {"frey": "Frey Face, 1965 frames", None: "no faces"}
    faces = known.get(metrics["faces"], "drawn stand-in faces")
    shown = metrics["parameters"].get("04", {})
    drawn = seeds_of(shown["seed"], shown["n_face_seeds"]) if "n_face_seeds" in shown else metrics["seeds"]
    of_faces = "" if drawn == metrics["seeds"] else f" (of faces {', '.join(map(str, drawn))})"
    parts = [
        f"<h1>Autoencoders: {escape(metrics['profile'])} run</h1>",
        f"<p>{len(metrics['seconds'])} notebooks in {metrics['wall_seconds'] / 60:.1f} minutes, training "
        f"seeds {escape(', '.join(map(str, metrics['seeds'])))}{of_faces}, on {escape(metrics['device'])}; MNIST and "
        f"{faces}. {len(rows)} metrics, {state}.</p>",
    ]
    for number, said in metrics.get("failed", {}).items():
        first, *more = said.split("\n", 1)
        trace = f"<pre>{escape(more[0].strip())}</pre>" if more else ""
        parts.append(
            f'<details class="loud"><summary>Notebook {escape(number)}: {escape(first)}</summary>{trace}</details>'
        )
    if metrics["faces"] == "synthetic":
        parts.append(
            '<p class="loud">Frey Face was not found. Notebook 04 shows drawn stand-in faces instead.</p>'
        )
    if metrics["profile"] == "quick":
        parts.append(
            '<p class="loud">A quick run: small subsets, a few steps. No figure here says anything.</p>'
        )
    parts += ["<h2>Verdicts</h2>", verdicts_table(metrics["verdicts"], reference["verdicts"])]
    parts += ["<h2>Key figures</h2>", *key_figures(metrics["metrics"], reference["metrics"])]
    parts.append("<h2>Notebooks</h2>")
    for stem, title, figures in chapters:
        parts.append(
            f'<h3><a href="{quote(stem)}.html">{escape(title)}</a></h3>'
            f"<p>{escape(str(metrics['seconds'].get(stem, '?')))} s</p>"
        )
        chosen = f"figure_{CHOSEN.get(stem[:2])}.png"
        for name, alt in [found for found in figures if found[0] == chosen] or figures[-1:]:
            image = f'<a href="figures/{name}"><img src="figures/{name}" alt="{escape(alt, quote=True)}"></a>'
            parts.append(f"<figure>{image}<figcaption>{escape(alt)}</figcaption></figure>")
    parts.append(f"<h2>Metrics</h2><p>{len(rows)} metrics, {state}.</p>")
    head = ("metric", "this run", "reference", "tolerance", "unit", "")
    for number in sorted({row[0][:2] for row in rows}):
        of_notebook = table(head, [row for row in rows if row[0].startswith(number)])
        parts.append(f"<details><summary>Notebook {number}</summary>{of_notebook}</details>")
    if any(said != "not tried yet" for said in metrics.get("exercises", {}).values()):
        tried = [(*key.split("."), said) for key, said in metrics["exercises"].items()]
        parts += ["<h2>Exercises</h2>", table(("notebook", "exercise", "its check says"), tried)]
    parts += ["<h2>How it was run</h2>", table(("", "version"), metrics["versions"].items())]
    known = metrics["parameters"]
    names = dict.fromkeys(name for values in known.values() for name in values)
    chosen = [(name, *(values.get(name, "") for values in known.values())) for name in names]
    parts += [table(("parameter", *known), chosen), '<p><a href="metrics.json">metrics.json</a></p>']
    return "\n".join(parts)


def verdicts_table(verdicts, reference):
    """The verdicts of a run, each beside the reference run's."""
    head = ("", "claim", "this run", "reference run", "effect", "95 % interval", "seeds", "contrast")
    rows = [
        (name, found["claim"], found["verdict"], reference.get(name, {}).get("verdict", "–"))
        + (*measured(found), found["contrast"])
        for name, found in sorted(verdicts.items())
    ]
    return table(head, rows)


def key_figures(metrics, reference):
    """The README's rows from a run's metrics, beside the reference run's."""

    def both(key, decimals):
        return [figure(found.get(key), decimals) for found in (metrics, reference)]

    codes = []
    for row, (key, decimals) in CODES.items():
        here, there = zip(*(both(key.format(model), decimals) for model in MODELS))
        codes.append((row, *here, *there))
    faces = [(row, *both(key, decimals)) for row, (key, decimals) in FACE.items()]
    names = [model.upper() for model in MODELS]
    head = ("digits", *names, *(f"{name}, reference run" for name in names))
    return table(head, codes), table(("faces", "VAE, this run", "reference run"), faces)


def table(head, rows):
    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    if not rows:
        return "<p>None.</p>"
    body = "\n".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>\n{body}\n</tbody></table>"


def comparison(metrics):
    """([(metric, this run, reference, tolerance, unit, status)], [names that are off]) of a metrics.json."""
    reference, rows = load_reference(), []
    for key in dict.fromkeys([*metrics["metrics"], *reference["metrics"]]):
        parameters = metrics["parameters"].get(key[:2])
        if parameters is None:
            continue
        n_faces = parameters.get("n_face_seeds")
        run = SimpleNamespace(
            number=key[:2],
            profile=metrics["profile"],
            seeds=metrics["seeds"] if n_faces is None else seeds_of(parameters["seed"], n_faces),
            faces=metrics["faces"],
            parameters=parameters,
        )
        entry = metrics["metrics"].get(key)
        row = compare(key, entry, reference, run)
        unit = (entry or reference["metrics"][key])["unit"]
        numbers = ("—" if row[k] is None else f"{row[k]:.4g}" for k in ("value", "reference", "tolerance"))
        rows.append((key, *numbers, unit, row["status"]))
    return rows, [row[0] for row in rows if row[-1] == "off"]


def as_text(rows):
    """The comparison as an aligned table for the terminal."""
    lines = [("metric", "this run", "reference", "tolerance", "unit", ""), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join(
        "  ".join([*(c.ljust(w) for c, w in zip(line, widths)), line[5]]).rstrip() for line in lines
    )


def damaged_files(data):
    """The names in data/SHA256SUMS whose files are missing or have another checksum, or its own if it is missing."""
    sums, bad = data / "SHA256SUMS", []
    if not sums.is_file():
        return [sums.name]
    for line in sums.read_text(encoding="utf-8").splitlines():
        digest, name = line.split(maxsplit=1)
        path = data / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            bad.append(name)
    return bad
