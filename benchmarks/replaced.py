"""How alike somebody is who takes the place of a face in a picture (`selfsame edit --person --into`), by how much of the picture is looked at around it.

The pictures are the people protocol's renders of two people; the second is replaced by somebody else, whom the judge looks for there.

    python benchmarks/replaced.py --count 60
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from selfsame.evaluation.metrics import bootstrap_interval, is_first, mean, paired_interval
from selfsame.evaluation.report import span, with_span
from selfsame.recipes.measure.protocols import checked_protocol
from selfsame.recipes.measure.uses import PEOPLE, Asking, Bench, Group, group_kps, groups_of, oracle_group, people_digest
from selfsame.studio.inpainting import face_to_replace, put_person
from selfsame.studio.request import OWN, EditRequest, Request

ANOTHER = 37  # from the person who is replaced to the one who comes


def main(count: int, split: str) -> None:
    with TemporaryDirectory() as folder:
        p = {**checked_protocol(PEOPLE, people_digest), "split": split}
        bench = Bench(p, Asking(Path(folder)))
        pairs = [g for g in groups_of(p, p["people"]) if len(g.people) == 2][:count]

        def measured(context: float) -> tuple[list[float], list[float]]:
            cosines, hits = [], []
            for group in pairs:
                who = (group.people[1] + ANOTHER) % p["gallery_people"]
                image = replaced(bench, group, who, context)
                vector, _ = bench.vector(image, group_kps(2, 1, group.width).mean(0))
                cosines.append(0.0 if vector is None else float(vector @ bench.gallery[who]))
                hits.append(float(is_first(vector, bench.gallery, who)))
            return cosines, hits

        own, wide = measured(OWN), measured(1.8)
    print(f"{len(pairs)} pictures of split {split}, the second of two people replaced")
    for name, (cosines, hits) in (("half of the square is the face", own), ("1.8 times the masked region", wide)):
        print(f"{name}: rank-1 of 100 {mean(hits):.2f} ({span(*bootstrap_interval(hits))}), cosine {mean(cosines):.3f} ({span(*bootstrap_interval(cosines))})")
    for what, k in (("cosine", 0), ("rank-1", 1)):
        print(f"{what}, the first minus the second: {with_span(paired_interval(own[k], wide[k]), 'pictures')}")


def replaced(bench: Bench, group: Group, who: int, context: float) -> np.ndarray:
    """The group's render with the person on the right replaced."""
    source = oracle_group(bench, group)
    face, _ = face_to_replace(bench.studio, source, 1)
    request = Request(prompt=group.prompt.replace("two people", "a person"), seed=group.seed)
    return put_person(bench.studio, source, face, bench.identity(who), request, EditRequest(context=context))[0][0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="pictures, at most 60")
    parser.add_argument("--split", default="test", help="whose faces: test or validation")
    given = parser.parse_args()
    main(given.count, given.split)
