"""The peers' table and its plot, from the rows that `yolo-bench` writes: `peers-<side>.json`."""

import html
import json
import pathlib
import shutil

COLUMNS = [
    ("rate", "images/s", "{:.1f}"),
    ("of_ceiling", "of the ceiling", "{:.3f}"),
    ("p99_ms", "p99 ms", "{:.0f}"),
    ("overload_p99_ms", "overload p99 ms", "{:.0f}"),
    ("goodput_ratio", "overload goodput", "{:.2f}"),
    ("refused_ratio", "refused", "{:.2f}"),
    ("pss_mb", "PSS MB", "{:.0f}"),
    ("ready_s", "first answer s", "{:.2f}"),
    ("agreement", "same objects", "{:.3f}"),
    ("foreign_cores", "foreign cores", "{:.2f}"),
]
PANELS = [
    ("of_ceiling", "Throughput over the in-process ceiling (more is better)"),
    ("overload_p99_ms", "p99 of answers at twice the ceiling's rate, ms (less is better)"),
    ("pss_mb", "Memory of all processes, PSS in MB (less is better)"),
]
WIDTH, NAME_WIDTH, BAR_WIDTH, BAR, GAP, TITLE = 720, 110, 500, 16, 6, 30
OURS, OTHERS, INK = "#1565c0", "#b0bec5", "#263238"
NOTES = (
    "Two workers of one thread each for everybody (Ultralytics brings its own session), no batching, the same ONNX file and "
    "JPEG pages, no cache. Closed loop: 8 callers on loopback; overload: Poisson arrivals at twice the ceiling's rate for 8 s, "
    "each server with its own default admission; goodput = answers within 1.25 s of their arrival that ended in the last 6 of "
    "these 8 s, a second, over the server's closed-loop rate: what is answered after the arrivals have ceased is not counted. "
    "Medians of the rounds, smallest to largest in parentheses; the contenders take turns in each round and the ceiling is "
    "measured before and after each, in a process that has ended when memory is read. *Same objects*: detections shared with "
    "the in-process path over those of either (JPEG decoders differ by a few levels). *Foreign cores*: other work on the "
    "machine during the closed loop or the overload, whichever had more."
)


def duel(report):
    """Rates in slices by turns: the only ones near enough in time for a difference of a few hundredths."""
    measured = report.get("duel")
    if not measured:
        return ""
    of, over = (
        f"{ratio['mean']:.3f} ± {ratio['half_interval']:.3f}" for ratio in (measured["of_ceiling"], measured["over_peer"])
    )
    return (
        f"The server, its fastest peer and the ceiling in {len(measured['over_peer']['rounds'])} rounds of slices of 2 to 3 s, all "
        f"started before: **{over} of {measured['peer']}'s rate, {of} of the ceiling's** (95 % intervals); turns of whole "
        "servers, as in the table, lie too far apart to tell so small a difference.\n\n"
    )


def cell(values, form):
    if values is None:
        return "–"
    median, low, high = (form.format(values[key]) for key in ("median", "min", "max"))
    return median if low == high else f"{median} ({low} to {high})"


def table(report):
    head = ["server", *(title for _, title, _ in COLUMNS)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in report["rows"]:
        cells = [cell(row["values"].get(key), form) for key, _, form in COLUMNS]
        lines.append("| " + " | ".join([row["contender"], *cells]) + " |")
    return "\n".join(lines)


def panel(rows, key, title, top):
    """One row of bars a contender: the median, and a line from the smallest to the largest round."""
    shown = [(row["contender"], row["values"][key]) for row in rows if key in row["values"]]
    px = BAR_WIDTH / max((values["max"] for _, values in shown), default=1)
    yield f'<text x="0" y="{top + 18}" font-size="15">{html.escape(title)}</text>'
    for index, (name, values) in enumerate(shown):
        y = top + TITLE + index * (BAR + GAP)
        low, median, high = (NAME_WIDTH + values[part] * px for part in ("min", "median", "max"))
        colour = OURS if name == "yolo-server" else OTHERS
        number = f"{values['median']:.2f}" if values["median"] < 10 else f"{values['median']:.0f}"
        yield f'<text x="{NAME_WIDTH - 8}" y="{y + 13}" text-anchor="end">{name}</text>'
        yield f'<rect x="{NAME_WIDTH}" y="{y}" width="{median - NAME_WIDTH:.1f}" height="{BAR}" fill="{colour}"/>'
        yield f'<path d="M{low:.1f} {y + BAR / 2}H{high:.1f}" stroke="{INK}"/>'
        yield f'<text x="{high + 8:.1f}" y="{y + 13}">{number}</text>'


def plot(report):
    height = TITLE + len(report["rows"]) * (BAR + GAP) + 2 * GAP
    body = [
        line
        for index, (key, title) in enumerate(PANELS)
        for line in panel(report["rows"], key, title, 2 * GAP + index * height)
    ]
    size = f'width="{WIDTH}" height="{len(PANELS) * height + 2 * GAP}"'
    style = f'font-family="sans-serif" font-size="13" fill="{INK}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(body) + "\n</svg>\n"


def render(kept: pathlib.Path, fresh: pathlib.Path, docs: pathlib.Path):
    """Keeps fresh reports, writes their plots, and returns the lines of docs/performance.md."""
    for path in sorted(fresh.glob("peers-*.json")):
        shutil.copy(path, kept / path.name)
    lines = []
    for path in sorted(kept.glob("peers-*.json"), reverse=True):
        report = json.loads(path.read_text())
        ceiling = cell(report["ceiling"], "{:.1f}")
        (docs / f"{path.stem}.svg").write_text(plot(report))
        lines += ["", f"### Beside its peers, input {report['side_px']}", "", f"{duel(report)}In-process ceiling: {ceiling} images/s. {NOTES}"]
        lines += ["", f"![Throughput, overload latency and memory beside the peers]({path.stem}.svg)", "", table(report)]
    return lines
