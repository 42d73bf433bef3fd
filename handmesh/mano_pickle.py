"""Reads MANO's pickles without chumpy, and without running anything that a pickle may ask for.

``MANO_RIGHT.pkl`` was written by Python 2 and holds numpy arrays, a scipy sparse matrix and objects of chumpy, a
library that current Python and numpy cannot install. The unpickler here stands in for numpy's array constructors; every
chumpy or scipy class becomes an inert record of the object's state, from which the numbers are taken; any other name
is refused.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class _Record:
    """Stands in for an object of a foreign class: keeps the state that was pickled, does nothing."""

    origin = ""

    state: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> _Record:
        record = super().__new__(cls)  # all that some pickles call
        record.state = {}
        return record

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"unexpected state of {self.origin}")
        self.state = state


def read_mano_pickle(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a MANO pickle under its own key names; entries that are no arrays (such as its style) are left out.

    Raises ValueError if the file is no such pickle or asks for anything but arrays.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except Exception as error:  # A hostile or broken pickle can raise anything at all.
        raise ValueError(f"{path} cannot be read as a MANO pickle: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a MANO pickle: it holds a {type(content).__name__}, not a dict")
    arrays: dict[str, np.ndarray] = {}
    for key, value in content.items():
        if isinstance(value, _PlainArray | _Record):
            try:
                arrays[str(key)] = _to_array(value)
            except (KeyError, ValueError, IndexError, TypeError, RecursionError, MemoryError) as error:
                raise ValueError(f"{path}: the entry {key!r} cannot be turned into an array: {error}") from error
    return arrays


def _to_array(value: Any) -> np.ndarray:
    """A dense array from an array, a chumpy object's record or a scipy sparse matrix's record."""
    if not isinstance(value, _Record):
        array = np.asarray(value.array if isinstance(value, _PlainArray) else value)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"dtype {array.dtype} is not numeric")
        return array
    state, class_name = value.state, value.origin.rpartition(".")[2]
    if value.origin.startswith("scipy."):
        return _sparse_to_array(state, by_column=class_name.startswith("csc"))
    if class_name == "Select":  # chumpy.reordering: picks entries of another object, then reshapes
        picked = _to_array(state["a"]).ravel()[_to_array(state["idxs"])]
        shape = state.get("preferred_shape")
        return picked if shape is None else picked.reshape(_to_array(shape).tolist())
    if "x" in state:  # chumpy.ch.Ch: a plain array
        return _to_array(state["x"])
    raise ValueError(f"cannot evaluate a {value.origin}")


def _sparse_to_array(state: dict[str, Any], by_column: bool) -> np.ndarray:
    """The pickled state of a scipy csc or csr matrix to a dense array."""
    rows, columns = (int(n) for n in state["_shape" if "_shape" in state else "shape"])
    data, indices, indptr = (_to_array(state[name]) for name in ("data", "indices", "indptr"))
    dense = np.zeros((columns, rows) if by_column else (rows, columns), dtype=data.dtype)
    major = np.repeat(np.arange(len(dense)), np.diff(indptr))
    np.add.at(dense, (major, indices), data)
    return dense.T if by_column else dense


class _ArrayUnpickler(pickle.Unpickler):
    """Finds numpy's array constructors and plain objects; foreign array classes become records; refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        numpy_module = module.replace("numpy._core", "numpy.core")
        if (numpy_module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return _Function(_empty_array)
        if (numpy_module, name) == ("numpy.core.numeric", "_frombuffer"):
            return _Function(_from_buffer)
        if (module, name) == ("builtins", "bytearray"):
            return bytearray
        if (numpy_module, name) == ("numpy.core.multiarray", "scalar"):
            return _Function(_scalar)
        if (module, name) == ("numpy", "ndarray"):
            return _PlainArray
        if (module, name) == ("numpy", "dtype"):
            return _DType
        if (module, name) in {("copy_reg", "_reconstructor"), ("copyreg", "_reconstructor")}:
            return _Function(_reconstruct_record)
        if module in {"__builtin__", "builtins"} and name in {"object", "set"}:
            return {"object": object, "set": set}[name]
        if (module, name) == ("_codecs", "encode"):
            return _Function(_latin1_bytes)
        if module.startswith("chumpy.") or (module.startswith("scipy.sparse") and name in {"csc_matrix", "csr_matrix"}):
            return type(name, (_Record,), {"origin": f"{module}.{name}"})
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs; nothing was run")


class _Function:
    """What a pickle may call and do nothing else with: to a function itself it could give other defaults, for good."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


class _DType:
    """A pickled dtype: its kind and size, and its byte order. numpy's own would let a file describe any memory."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str):
            raise pickle.UnpicklingError("only arrays of plain numbers are read")
        self.code, self.order = code, "="  # native

    def __setstate__(self, state: Any) -> None:
        if any(state[2:5]):
            raise pickle.UnpicklingError("only arrays of plain numbers are read")
        self.order = state[1]

    def numbers(self) -> np.dtype:
        order: Any = self.order if self.order in "<>" else "="
        dtype = np.dtype(self.code).newbyteorder(order)
        if dtype.kind not in "fiub":
            raise pickle.UnpicklingError(f"only arrays of plain numbers are read, not of {dtype}")
        return dtype


class _PlainArray:
    """A pickled array, made of its bytes only where they are plain numbers."""

    array = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        raw = data.encode("latin1") if isinstance(data, str) else data
        flat = np.frombuffer(raw, dtype.numbers())
        self.array = flat.reshape(shape, order="F" if fortran else "C")


def _empty_array(cls: Any, shape: Any, dtype: Any) -> _PlainArray:
    """What numpy's own pickles call first; the values follow as the array's state."""
    if cls is not _PlainArray:
        raise pickle.UnpicklingError("only plain arrays are read")
    return _PlainArray()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _PlainArray:
    """How numpy writes an array in protocol 5."""
    array = _PlainArray()
    array.__setstate__((1, shape, dtype, order == "F", bytes(data)))
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype.numbers())[0]


def _reconstruct_record(cls: Any, base: Any, state: Any) -> _Record:
    """Python 2's way of making an object, for records only."""
    if not (isinstance(cls, type) and issubclass(cls, _Record)) or base is not object or state is not None:
        raise pickle.UnpicklingError("only arrays and records are made")
    return cls()


def _latin1_bytes(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes for older protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"unexpected encoding {encoding!r}")
    return text.encode("latin1")
