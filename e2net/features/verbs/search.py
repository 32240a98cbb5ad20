"""The pictures of a folder that are most like one. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from e2net.features.verbs.common import EncoderSettings, free_output

if TYPE_CHECKING:
    from e2net.features.extract import Extractor
    from e2net.features.inputs import Failures

USAGE = """\
Finds the pictures of a folder that are most like one, by the cosine of their features.

  python -m e2net.features search encoder=dinov3_s input=DIR query=picture.jpg output=DIR
  python -m e2net.features search encoder=dinov3_s input=DIR duplicates=0.95 output=DIR
  python -m e2net.features search encoder=dinov3_s input=DIR labelled=true output=DIR

input is a folder of pictures with all below it, or a pattern. query is a picture, a folder or a pattern. The vectors of
a folder are kept in OUT/vectors.npz and taken from there for files that have not changed since.

Writes OUT/search.json, OUT/search.jpg (a row for each of the first queries) and OUT/vectors.npz. labelled=true takes
the name of the folder in which a picture lies as its class, and prints precision at 1 and 5 and mean average precision
of each picture among all others.
"""
FILES = ("search.json", "search.jpg", "vectors.npz")


@dataclass(frozen=True, kw_only=True)
class Settings(EncoderSettings):
    """Of ``search``.

    Raises:
        ValueError: a value is out of its range, or nothing is asked for.
    """

    input: Annotated[str, "pictures to search in"]
    query: Annotated[str | None, "picture or pictures to search for"] = None
    output: Annotated[str | None, "folder of the results; null: runs/features_search_<time>"] = None
    descriptor: Annotated[Literal["class", "patches", "both"], "class token, mean of the patches, or both"] = "class"
    top: Annotated[int, "pictures to find for each query"] = 10
    duplicates: Annotated[float | None, "list pairs in input whose cosine is at least this; null: none"] = None
    labelled: Annotated[bool, "folders are classes: score each picture among all others"] = False
    index: Annotated[Literal["exact", "faiss"], "exact, or faiss (approximate; an extra) for very many"] = "exact"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        if not 1 <= self.top <= 10_000:
            raise ValueError(f"top={self.top}: expected 1 to 10000")
        if self.duplicates is not None and not 0 < self.duplicates <= 1:
            raise ValueError(f"duplicates={self.duplicates}: expected a cosine above 0, up to 1")
        if self.query is None and self.duplicates is None and not self.labelled:
            raise ValueError("expected query=..., duplicates=... or labelled=true; found nothing to do")


def run(settings: Settings) -> int:
    """Writes the index and what was asked of it."""
    from e2net.features.index import load_faiss  # noqa: PLC0415 - torch takes seconds
    from e2net.features.inputs import Failures, find_pictures  # noqa: PLC0415
    from e2net.runs.folder import owned  # noqa: PLC0415

    output = free_output(settings.output, "search", FILES)
    if settings.index == "faiss":
        load_faiss()
    failures = Failures()
    files = find_pictures(settings.input, failures=failures)
    queries = find_pictures(settings.query, "query", failures) if settings.query else []
    extractor = settings.extractor()
    with owned(output):
        _search(settings, output, extractor, files, queries, failures)
    return failures.report()


def _search(
    settings: Settings,
    output: Path,
    extractor: "Extractor",
    files: list[Path],
    queries: list[Path],
    failures: "Failures",
) -> None:
    import json  # noqa: PLC0415

    from e2net.features.index import ApproximateIndex, Index, leave_one_out  # noqa: PLC0415
    from e2net.features.store import search_sheet, vectors_of  # noqa: PLC0415
    from e2net.files import write_atomically  # noqa: PLC0415
    from e2net.runs.outputs import claim  # noqa: PLC0415

    claim(output, FILES, [name for name in FILES if queries or name != "search.jpg"])
    how = (failures, settings.descriptor, settings.batch_size)
    files, vectors = vectors_of(extractor, files, *how, output / "vectors.npz")
    index = ApproximateIndex(vectors) if settings.index == "faiss" else Index(vectors)
    document: dict[str, object] = {"encoder": settings.encoder, "descriptor": settings.descriptor, "size": len(files)}
    if settings.labelled:
        document["scores"] = scores = leave_one_out(vectors, [file.parent.name for file in files])
        print("  ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    if settings.duplicates is not None:
        pairs = Index(vectors).pairs(settings.duplicates)
        document["duplicates"] = [{"pictures": [str(files[i]), str(files[j])], "cosine": c} for i, j, c in pairs]
        print(f"{len(pairs)} pairs of cosine {settings.duplicates:g} or more")
    if queries:
        queries, wanted = vectors_of(extractor, queries, *how)
        found = [index.query(vector, settings.top) for vector in wanted]
        document["queries"] = [
            {"query": str(query), "found": [
                {"picture": str(files[row]), "cosine": float(cosine)}
                for row, cosine in zip(one.rows, one.cosines, strict=True)
            ]}
            for query, one in zip(queries, found, strict=True)
        ]  # fmt: skip
        write_atomically(output / "search.jpg", search_sheet(queries, files, found))
        print(f"sheet: {output / 'search.jpg'}")
    write_atomically(output / "search.json", json.dumps(document, indent=1) + "\n")
    print(f"written: {output / 'search.json'}")
