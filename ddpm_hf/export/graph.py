"""ONNX graphs of a network or of the denoising loop around it, and smaller weights for them."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401 -- PyTorch's exporter needs it, and would miss it only later
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

MATRICES = ("Conv", "ConvTranspose", "MatMul", "Gemm")  # operators whose weights can have fewer bits
SMALL = 64  # weights of fewer numbers keep 32 bits


def to_onnx(module: nn.Module, inputs: dict, free: dict, output: str) -> onnx.ModelProto:
    """Trace a module.

    Args:
        module (`torch.nn.Module`): The module, in evaluation mode.
        inputs, free (`dict`): See [`~ddpm_hf.export.modules.example`].
        output (`str`): Name of the output.

    Raises:
        ValueError: If ONNX lacks an operator of the module.
    """
    with warnings.catch_warnings(), _quiet("torch.onnx"):  # it warns that torchvision is not installed
        warnings.simplefilter("ignore")  # of PyTorch's own parts
        try:
            program = torch.onnx.export(
                module, kwargs=inputs, dynamic_shapes=free, input_names=[*inputs], output_names=[output], verbose=False
            )
        except (torch.onnx.errors.OnnxExporterError, torch.onnx.errors.UnsupportedOperatorError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise ValueError(f"ONNX cannot express this network ({reason}); try --format torch.export.") from error
    assert program is not None
    model = program.model_proto
    for item in (*model.graph.node, *model.graph.value_info, model.graph):
        item.ClearField("metadata_props")  # traces of the source, with paths
        item.ClearField("doc_string")
    del model.metadata_props[:]
    return model


def with_loop(step: onnx.ModelProto, steps: int) -> onnx.ModelProto:
    """Return the graph that takes all steps, of one that takes a step: from x_T to images in [0, 1].

    Args:
        step (`onnx.ModelProto`): It has the inputs of [`~ddpm_hf.export.modules.Step`].
        steps (`int`): Their number.
    """
    graph = step.graph
    renamed = {"sample": "x_t", graph.output[0].name: "x_next"}  # an inner graph may not reuse an outer name
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    sample, index, *others = graph.input
    x_t, x_next, images = onnx.ValueInfoProto(), onnx.ValueInfoProto(), onnx.ValueInfoProto()
    for info, name in ((x_t, "x_t"), (x_next, "x_next"), (images, "images")):
        info.CopyFrom(sample)
        info.name = name
    go_on, still_on = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go_on", "still_on"))
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["still_on"]), *graph.node],
        "step",
        [index, go_on, x_t],
        [still_on, x_next],
    )
    count = numpy_helper.from_array(np.array(steps, dtype=np.int64), "steps")
    half = numpy_helper.from_array(np.array(0.5, dtype=np.float32), "half")
    bounds = [
        numpy_helper.from_array(np.array(value, dtype=np.float32), name) for name, value in (("zero", 0), ("one", 1))
    ]
    nodes = [
        helper.make_node("Loop", ["steps", "", "sample"], ["x_0"], body=body),
        helper.make_node("Mul", ["x_0", "half"], ["halved"]),
        helper.make_node("Add", ["halved", "half"], ["shifted"]),
        helper.make_node("Clip", ["shifted", "zero", "one"], ["images"]),
    ]
    whole = helper.make_graph(nodes, "loop", [sample, *others], [images], [*graph.initializer, count, half, *bounds])
    return helper.make_model(whole, opset_imports=step.opset_import, ir_version=step.ir_version)


def with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with the weights of matrices and convolutions in 16 bits, which are 32 again when it is opened.

    Other numbers keep their bits: the frequencies of the time embedding, and the table of a loop.
    """
    casts, weights = [], {name for node in _nodes(model.graph) if node.op_type in MATRICES for name in node.input}
    for weight in model.graph.initializer:
        if weight.name in weights and weight.data_type == TensorProto.FLOAT and np.prod(weight.dims) >= SMALL:
            name, array = weight.name, numpy_helper.to_array(weight)
            weight.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def with_int8_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with matrices and convolutions in 8 bits, which scales activations as it goes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _quiet(None),
    ):  # it advises to prepare the graph, which changes nothing
        file = Path(folder, "model.onnx")
        quantize_dynamic(model, file, op_types_to_quantize=["Conv", "MatMul"], weight_type=QuantType.QUInt8)
        return onnx.load(file)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Go through the nodes of a graph and of the graphs in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)


@contextmanager
def _quiet(name: str | None) -> Iterator[None]:
    """Let a logger report errors only, while the context is open."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def save_onnx(model: onnx.ModelProto, file: Path):
    """Save a model as one file."""
    onnx.save(model, str(file))


def open_onnx(file: Path) -> onnxruntime.InferenceSession:
    """Open a model for the CPU, without onnxruntime's warnings."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
