"""MEASURED: the loss along lines, in planes and between solutions, and where its gradient is 0.

    direction, plane_of_trajectory      where to look: random, with the filters' sizes; the plane of a training
    line, plane                         the loss there, in one compiled call
    interpolation, connect, align       paths between two solutions: straight, curved, after sorting the hidden units
    critical_point                      a point without gradient, and how many directions lead down from it
    boundary, box_dimension             where two sides of a grid meet, and how rough (fractal) that border is

`loss(params, batch)` is a scalar, nothing random in it. Real floating leaves of params move, complex ones as two reals;
all else stays as it is, and what `frozen` names: batch statistics, for one. On a CPU the points of a grid are computed
one after the other, elsewhere together; `at_a_time` changes that.
"""

from numdl.analysis._alignment import Alignment, align
from numdl.analysis._between import Connection, Path, connect, interpolation
from numdl.analysis._boxes import BoxDimension, boundary, box_dimension
from numdl.analysis._critical import CriticalPoint, critical_point
from numdl.analysis._directions import TrajectoryPlane, direction, plane_of_trajectory
from numdl.analysis._grids import Line, Plane, line, plane

__all__ = [
    "Alignment",
    "BoxDimension",
    "Connection",
    "CriticalPoint",
    "Line",
    "Path",
    "Plane",
    "TrajectoryPlane",
    "align",
    "boundary",
    "box_dimension",
    "connect",
    "critical_point",
    "direction",
    "interpolation",
    "line",
    "plane",
    "plane_of_trajectory",
]
