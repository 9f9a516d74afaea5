"""ONNX graphs of a network or of the denoising loop around it, and smaller weights for them."""

import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

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
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    with warnings.catch_warnings():
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
    """Return the graph with its weights stored in 16 bits. They become 32 bits when the model is opened."""
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and np.prod(weight.dims) >= SMALL:
            name, array = weight.name, numpy_helper.to_array(weight)
            weight.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def with_int8_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with matrices and convolutions in 8 bits, which scales activations as it goes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        logging.getLogger().setLevel(logging.ERROR)  # it advises to prepare the graph, which changes nothing here
        quantize_dynamic(model, file, weight_type=QuantType.QUInt8)
        return onnx.load(file)


def open_onnx(file: Path) -> onnxruntime.InferenceSession:
    """Open a model for the CPU, without onnxruntime's warnings."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
