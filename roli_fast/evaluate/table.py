"""The table that an evaluation ends with."""

from typing import Any

from roli_fast.running.text import align


def table(report: dict[str, Any]) -> str:
    """A report as text."""
    rows = [["", "eps", "attacked", "fooled", "accuracy", "95 % interval"]]
    rows.append(["clean", "", "", "", *_accuracy(report["clean"])])
    for norm, entry in report["norms"].items():
        left = None
        for search in entry["searches"]:
            left = search["attacked"] - search["fooled"]
            share = _percent(left / report["images"])
            counts = [str(search["attacked"]), str(search["fooled"])]
            rows.append([f"{norm} {search['part']}", _eps(entry["eps"]), *counts, share, ""])
        if entry["robust"] is not None:
            rows.append([f"{norm} robust", _eps(entry["eps"]), "", "", *_accuracy(entry["robust"])])
    if len(report["norms"]) > 1:
        rows.append(["union", "", "", "", *_accuracy(report["union"])])
    rows += _unseen(report["unseen"])
    shifts = report["shifts"] or {"corruptions": {}, "ood": None}
    for kind, levels in shifts["corruptions"].items():
        share = sum(entry["accuracy"] for entry in levels.values()) / len(levels)
        rows.append([f"{kind}, mean of {len(levels)}", "", "", "", _percent(share), ""])
    if shifts["corruptions"]:
        rows.append(["corruptions, mean", "", "", "", _percent(shifts["corruption_accuracy"]), ""])
    if shifts["ood"]:
        rows.append(["second data set", "", "", "", *_accuracy(shifts["ood"])])
    for curve in report["curves"] or ():
        for point in curve["points"][1:]:
            entry = point | {"interval_95": [point["low"], point["high"]]}
            rows.append([f"curve {curve['attack']}", _eps(point["eps"]), "", "", *_accuracy(entry)])
    return "\n".join([*align(rows), "", *_remarks(report)])


def _unseen(unseen: dict[str, Any] | None) -> list[list[str]]:
    """Each attack by itself, their mean, and what stays right under all of them."""
    if not unseen:
        return []
    rows = []
    for entry in unseen["attacks"]:
        attacked = entry["searches"][0]["attacked"]
        counts = [str(attacked), str(sum(search["fooled"] for search in entry["searches"]))]
        name = f"unseen {entry['norm']} {entry['attack']}"
        rows.append([name, _eps(entry["eps"]), *counts, *_accuracy(entry["robust"])])
    rows.append(["unseen, mean", "", "", "", _percent(unseen["mean_accuracy"]), ""])
    unions = {"union": "unseen, union", "union_with_norms": "norms and unseen, union"}
    unions["union_with_corruptions"] = "norms, unseen, corruptions, union"
    for key, name in unions.items():
        if unseen[key]:
            rows.append([name, "", "", "", *_accuracy(unseen[key])])
    return rows


def _remarks(report: dict[str, Any]) -> list[str]:
    count, whole = report["images"], report["images_in_split"]
    which = f"{count} of the {whole}" if count < whole else f"all {count}"
    how = f", chosen at random by seed {report['seed']}" if count < whole else ""
    lines = [
        f"{which} {report['data']['split']} images{how}. A search attacks what those above it left "
        "right.",
        f"The attacks and their clean pass: {report['cost']['forward_images']} images forward, "
        f"{report['cost']['backward_images']} backward, {report['seconds']:.1f} s of search.",
    ]
    if report["search_dtype"] != "float32":
        lines.append(
            f"Searched in {report['search_dtype']}; {report['lost']} images found there did not "
            "fool the model in its own precision, and were searched again by it."
        )
    lines += [f"Warning: {text}." for text in report["warnings"]]
    lines += [f"Note: {text}." for text in report["notes"]]
    for norm, entry in report["norms"].items():
        for search in entry["searches"]:
            lines += [f"Note: {norm} {search['part']}: {note}." for note in search["notes"]]
    return lines


def _accuracy(entry: dict[str, Any]) -> list[str]:
    low, high = entry["interval_95"]
    return [_percent(entry["accuracy"]), f"{100 * low:.1f} to {100 * high:.1f} %"]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _eps(eps: float) -> str:
    pixels = round(eps * 255, 6)
    return f"{pixels:.0f}/255" if eps < 0.2 and pixels.is_integer() else f"{eps:.4g}"
