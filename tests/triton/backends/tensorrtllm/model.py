"""In place of the TensorRT-LLM backend: says the prompt's ids again, one in each answer."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        assert parameters["gpt_model_path"]["string_value"].endswith("engine")

    def execute(self, requests):
        for request in requests:
            ids = pb_utils.get_input_tensor_by_name(request, "input_ids").as_numpy().reshape(-1)
            wanted = int(pb_utils.get_input_tensor_by_name(request, "request_output_len").as_numpy().reshape(-1)[0])
            sender = request.get_response_sender()
            for number in range(wanted):
                output = np.array([[ids[number % len(ids)]]], dtype=np.int32)
                answer = pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("output_ids", output)])
                last = number + 1 == wanted
                sender.send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)
        return None
