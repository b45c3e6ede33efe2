"""A text model with the tensors of TensorRT-LLM's ensemble: batches of one, ``max_tokens`` apart, pieces as output."""

import threading

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.threads = []

    def execute(self, requests):
        for request in requests:
            # Inputs are read here: their memory is used again once this returns.
            tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in ("max_tokens", "stop_words")}
            limit = int(tensors["max_tokens"].as_numpy().reshape(-1)[0])
            stops = [] if tensors["stop_words"] is None else list(tensors["stop_words"].as_numpy().reshape(-1))
            thread = threading.Thread(target=self.answer, args=(request.get_response_sender(), limit, stops))
            thread.start()
            self.threads.append(thread)
        return None

    def answer(self, sender, limit, stops):
        stops = [word.decode() for word in stops]
        words = [f"trt{number} " for number in range(limit)]
        for number, word in enumerate(words):
            last = number + 1 == limit
            tensor = pb_utils.Tensor("text_output", np.array([[word.encode()]], dtype=object))
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
            sender.send(pb_utils.InferenceResponse(output_tensors=[tensor]), flags=flags)
            if any(stop in word for stop in stops) and not last:
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                return

    def finalize(self):
        for thread in self.threads:
            thread.join()
