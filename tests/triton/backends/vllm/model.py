"""In place of Triton's vLLM backend: declares its tensors as it does, and answers with the arguments it was given."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

INPUTS = {"text_input": "TYPE_STRING", "stream": "TYPE_BOOL", "sampling_parameters": "TYPE_STRING"}
INPUTS |= {"exclude_input_in_output": "TYPE_BOOL"}


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        for name, kind in INPUTS.items():
            tensor = {"name": name, "data_type": kind, "dims": [1]}
            config.add_input(tensor if name == "text_input" else {**tensor, "optional": True})
        config.add_output({"name": "text_output", "data_type": "TYPE_STRING", "dims": [-1]})
        config.set_model_transaction_policy({"decoupled": True})
        config.set_max_batch_size(0)
        return config

    def initialize(self, args):
        assert json.loads(args["model_config"])["instance_group"][0]["kind"] == "KIND_MODEL"
        self.arguments = (Path(args["model_repository"]) / args["model_version"] / "model.json").read_text()
        assert json.loads(self.arguments)["model"]

    def execute(self, requests):
        for request in requests:
            text = np.array([self.arguments.encode()], dtype=object)
            answer = pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("text_output", text)])
            request.get_response_sender().send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
