"""The blobs, with a source for each point: that of the wrong ones is known to be wrong throughout."""

from collections.abc import Sequence

from tests.flows.blobs import Blobs


class FacetedBlobs(Blobs):
    """Blobs with facets; the fault `short` leaves one value out."""

    def facets(self) -> dict[str, Sequence[object]]:
        cloud = self.points()
        sources = ["scraped" if row < self.wrong else f"site {row % 4}" for row in range(len(cloud))]
        return {"source": sources[: len(sources) - (self.fault == "short")], "x": cloud.samples[:, 0].tolist()}
