"""A prompt's characters are its ids."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "QUERY").as_numpy().reshape(-1)[0].decode()
            wanted = pb_utils.get_input_tensor_by_name(request, "REQUEST_OUTPUT_LEN").as_numpy()
            ids = pb_utils.Tensor("INPUT_ID", np.array([[ord(character) for character in text]], dtype=np.int32))
            outputs = [ids, pb_utils.Tensor("REQUEST_OUTPUT_LEN", wanted)]
            answers.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return answers
