"""A text model with the tensors of Triton's vLLM backend: it says ``tok0 tok1 …`` and tells when it is cancelled.

It is run by Triton's own Python backend. The prompt's words are its prompt tokens. A prompt with "slow" takes 50 ms a
token; one with "fail" fails after two tokens; "é" in a prompt is said again. As in that backend, an answer that does
not stream is one response, the prompt in front unless ``exclude_input_in_output`` is true, and sampling comes as
request parameters where the tensor is not there.
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
            given = text_of(request, "sampling_parameters")
            sampling = json.loads(request.parameters() if given is None else given.decode())
            stream = bool(text_of(request, "stream"))
            before = "" if text_of(request, "exclude_input_in_output") else prompt
            answer, more = (self.answer, ()) if stream else (self.whole, (before,))
            thread = threading.Thread(
                target=answer, args=(request, request.get_response_sender(), prompt, sampling, *more)
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

    def whole(self, request, sender, prompt, sampling, before):
        limit = int(sampling.get("max_tokens", 16))
        text = before + "".join(self.word(prompt, number) for number in range(limit))
        self.send(sender, prompt, text, limit, True)

    def word(self, prompt, number):
        return f"tok{number} " if "é" not in prompt else f"é{number} "

    def say(self, sender, prompt, number, last):
        self.send(sender, prompt, self.word(prompt, number), 1, last)

    def send(self, sender, prompt, text, tokens, last):
        tensors = [
            pb_utils.Tensor("text_output", np.array([text.encode()], dtype=object)),
            pb_utils.Tensor("finish_reason", np.array([b"length" if last else b"None"], dtype=object)),
            pb_utils.Tensor("num_input_tokens", np.array([len(prompt.split())], dtype=np.uint32)),
            pb_utils.Tensor("num_output_tokens", np.array([tokens], dtype=np.uint32)),
        ]
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
        sender.send(pb_utils.InferenceResponse(output_tensors=tensors), flags=flags)

    def finalize(self):
        for thread in self.threads:
            thread.join()
