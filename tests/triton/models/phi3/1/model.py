"""A text model with the tensors of Triton's vLLM backend: it says ``tok0 tok1 …`` and tells when it is cancelled.

It is run by Triton's own Python backend. The prompt's words are its prompt tokens. A prompt with "slow" takes 50 ms a
token; one with "fail" fails after two tokens; "é" in a prompt is said again.
"""

import json
import threading
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


def text_of(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().reshape(-1)[0]


class TritonPythonModel:
    def initialize(self, args):
        self.notes = Path(args["model_repository"]).parents[1] / "cancelled"
        self.threads = []

    def execute(self, requests):
        for request in requests:
            # Inputs are read here: their memory is used again once this returns.
            prompt = text_of(request, "text_input").decode()
            sampling = json.loads((text_of(request, "sampling_parameters") or b"{}").decode())
            thread = threading.Thread(
                target=self.answer, args=(request, request.get_response_sender(), prompt, sampling)
            )
            thread.start()
            self.threads.append(thread)
        return None

    def answer(self, request, sender, prompt, sampling):
        limit = int(sampling.get("max_tokens", 16))
        for number in range(limit):
            if request.is_cancelled():
                with self.notes.open("a") as notes:
                    notes.write(f"{prompt.split()[-1]} {number}\n")
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                return
            if "slow" in prompt:
                time.sleep(0.05)
            if "fail" in prompt and number == 2:
                error = pb_utils.TritonError("Error generating stream: /secret/path blew up")
                sender.send(
                    pb_utils.InferenceResponse(output_tensors=[], error=error),
                    flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
                )
                return
            self.say(sender, prompt, number, number + 1 == limit)

    def say(self, sender, prompt, number, last):
        word = f"tok{number} " if "é" not in prompt else f"é{number} "
        tensors = [
            pb_utils.Tensor("text_output", np.array([word.encode()], dtype=object)),
            pb_utils.Tensor("finish_reason", np.array([b"length" if last else b"None"], dtype=object)),
            pb_utils.Tensor("num_input_tokens", np.array([len(prompt.split())], dtype=np.uint32)),
            pb_utils.Tensor("num_output_tokens", np.array([1], dtype=np.uint32)),
        ]
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
        sender.send(pb_utils.InferenceResponse(output_tensors=tensors), flags=flags)

    def finalize(self):
        for thread in self.threads:
            thread.join()
