"""The Python packages huggingface_hub and, where it is installed, text-generation."""

import asyncio
import importlib.util

import huggingface_hub
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, ValidationError

from common import Checks, key, prompt, question, tokens

messages = [{"role": "user", "content": question}]


def run(world):
    found = [hub(world)]
    if importlib.util.find_spec("text_generation"):
        found.append(text_generation(world))
    return found


def details_of(world, checks, details, name, text, input_length=None):
    """What details of either package must hold, beside the logprobs of OpenAI's form."""
    import openai

    with openai.OpenAI(base_url=world.open.url + "/v1", api_key="none") as client:
        same = client.completions.create(model=name, prompt=prompt, max_tokens=tokens, temperature=0, logprobs=1)
    ended = same.choices[0].finish_reason == "stop"
    spoken = [token for token in details.tokens if not token.special]
    checks.equal("tokens spell the text", "".join(token.text for token in spoken), text)
    checks.nears("log-probabilities of both forms", [token.logprob for token in spoken],
                 same.choices[0].logprobs.token_logprobs)
    checks.equal("the reason", str(getattr(details.finish_reason, "value", details.finish_reason)),
                 "eos_token" if ended else "length")
    checks.equal("the count of tokens", details.generated_tokens, len(details.tokens))


def hub(world):
    checks = Checks("huggingface_hub", "huggingface_hub")
    client = huggingface_hub.InferenceClient(base_url=world.open.url, timeout=60)
    checks.about("text_generation, its details and streams")
    checks.equal("text", client.text_generation(
        prompt, max_new_tokens=tokens, return_full_text=False), world.text["tiny-chat"])
    checks.equal("text of an adapter", client.text_generation(
        prompt, max_new_tokens=tokens, adapter_id="tuned", return_full_text=False), world.text["tuned"])
    # As TGI does at this route for a model without a tag of the Hub.
    checks.equal("the whole text", client.text_generation(prompt, max_new_tokens=tokens),
                 prompt + world.text["tiny-chat"])
    for name in ("tiny-chat", "tuned"):
        whole = client.text_generation(prompt, max_new_tokens=tokens, adapter_id=name, details=True,
                                       decoder_input_details=True, top_n_tokens=3, return_full_text=False)
        checks.equal("text with details", whole.generated_text, world.text[name])
        details_of(world, checks, whole.details, name, world.text[name])
        checks.equal("ids of the prompt, as sentencepiece has them", [token.id for token in whole.details.prefill],
                     world.prompt_ids)
        checks.equal("the likeliest tokens", [[id_of(token) for token in top][0] for top in whole.details.top_tokens],
                     [token.id for token in whole.details.tokens])
        parts = list(client.text_generation(prompt, max_new_tokens=tokens, adapter_id=name, details=True, stream=True,
                                            return_full_text=False))
        checks.equal("the same tokens in a stream", [part.token.id for part in parts],
                     [token.id for token in whole.details.tokens])
        checks.nears("and log-probabilities", [part.token.logprob for part in parts],
                     [token.logprob for token in whole.details.tokens])
        checks.equal("text of a stream", parts[-1].generated_text, world.text[name])
        checks.equal("tokens of the prompt", parts[-1].details.input_length, len(world.prompt_ids))
        checks.equal("tokens of the text", parts[-1].details.generated_tokens, len(parts))
    checks.equal("a stream of texts", "".join(client.text_generation(prompt, max_new_tokens=5, stream=True)),
                 "".join(token.text for token in whole_of(client, 5)))
    word = world.text["tiny-chat"].split()[1]
    checks.true("a stop string", client.text_generation(prompt, max_new_tokens=tokens, stop=[word]).endswith(word))
    seeded = [client.text_generation(prompt, max_new_tokens=tokens, do_sample=True, temperature=2.0, seed=seed)
              for seed in (3, 3, 4)]
    checks.true("seeds", seeded[0] == seeded[1] != seeded[2], seeded)

    checks.about("chat_completion and its streams")
    checks.equal("answer without a model's name", client.chat_completion(messages, temperature=0)
                 .choices[0].message.content, world.answer["tiny-chat"])
    for name in ("tiny-chat", "tuned"):
        whole = client.chat_completion(messages, model=name, temperature=0, logprobs=True, top_logprobs=2)
        checks.equal("answer", whole.choices[0].message.content, world.answer[name])
        checks.equal("tokens of the prompt", whole.usage.prompt_tokens, len(world.chat_ids))
        checks.equal("tokens of the answer", whole.usage.completion_tokens, len(whole.choices[0].logprobs.content))
        parts = list(client.chat_completion(messages, model=name, temperature=0, stream=True))
        checks.equal("answer of a stream", "".join(part.choices[0].delta.content or "" for part in parts),
                     world.answer[name])
        checks.equal("its reason", parts[-1].choices[0].finish_reason, "stop")
    asynchronous = asyncio.run(chat_stream(world.open.url))
    checks.equal("answer of the asynchronous client", asynchronous, world.answer["tuned"])

    checks.about("errors and keys")
    checks.raises("a long reply", ValidationError, lambda: client.text_generation(prompt, max_new_tokens=5000),
                  "`inputs` tokens + `max_new_tokens` must be <= 512")
    checks.raises("a temperature of 0", ValidationError, lambda: client.text_generation(prompt, temperature=0.0),
                  "`temperature` must be strictly positive")
    checks.raises("a grammar", ValidationError, lambda: client.text_generation(
        prompt, grammar={"type": "regex", "value": "a"}), "grammar")
    checks.raises("a wrong role", BadRequestError, lambda: client.chat_completion(
        [{"role": "tool", "content": "a"}], model="tuned"), "role")
    unlocked = huggingface_hub.InferenceClient(base_url=world.locked.url, token=key, timeout=60)
    checks.true("with the key", unlocked.text_generation(prompt, max_new_tokens=2))
    locked = huggingface_hub.InferenceClient(base_url=world.locked.url, token="wrong", timeout=60)
    error = checks.raises("with a wrong key", HfHubHTTPError, lambda: locked.chat_completion(messages))
    checks.equal("its status", error.response.status_code if error else None, 401)
    return checks


def id_of(token):
    """Of a token of top_tokens, which some versions of the package leave as it came."""
    return token["id"] if isinstance(token, dict) else token.id


def whole_of(client, count):
    return client.text_generation(prompt, max_new_tokens=count, details=True).details.tokens


async def chat_stream(url):
    client = huggingface_hub.AsyncInferenceClient(base_url=url, timeout=60)
    stream = await client.chat_completion(messages, model="tuned", temperature=0, stream=True)
    said = "".join([part.choices[0].delta.content or "" async for part in stream])
    await stream.aclose()
    return said


def text_generation(world):
    import text_generation as package
    from text_generation.errors import OverloadedError, ValidationError as Wrong

    checks = Checks("text-generation", "text-generation")
    client = package.Client(world.open.url, timeout=60)
    checks.about("generate, generate_stream and their details")
    whole = client.generate(prompt, max_new_tokens=tokens, decoder_input_details=True, top_n_tokens=2)
    checks.equal("text", whole.generated_text, world.text["tiny-chat"])
    details_of(world, checks, whole.details, "tiny-chat", world.text["tiny-chat"])
    checks.equal("ids of the prompt", [token.id for token in whole.details.prefill], world.prompt_ids)
    checks.equal("the first log-probability of the prompt", whole.details.prefill[0].logprob, None)
    parts = list(client.generate_stream(prompt, max_new_tokens=tokens))
    checks.equal("text of a stream", parts[-1].generated_text, world.text["tiny-chat"])
    checks.equal("ids of a stream", [part.token.id for part in parts], [token.id for token in whole.details.tokens])
    best = client.generate(prompt, max_new_tokens=4, do_sample=True, temperature=1.5, best_of=2)
    checks.equal("the other of two", len(best.details.best_of_sequences), 1)
    checks.equal("text of the asynchronous client", asyncio.run(package.AsyncClient(world.open.url).generate(
        prompt, max_new_tokens=tokens)).generated_text, world.text["tiny-chat"])
    checks.about("chat")
    said = client.chat([package.types.Message(role="user", content=question)], temperature=0.0)
    checks.equal("answer", said.choices[0].message.content, world.answer["tiny-chat"])
    checks.about("errors")
    checks.raises("a long reply", Wrong, lambda: client.generate(prompt, max_new_tokens=5000), "must be <= 512")
    checks.raises("a watermark", Wrong, lambda: client.generate(prompt, watermark=True), "watermark")
    busy = package.Client(world.locked.url, headers={"Authorization": "Bearer " + key}, timeout=60)
    checks.true("with the key", busy.generate(prompt, max_new_tokens=2).generated_text)
    checks.raises("no key", package.errors.UnknownError, lambda: package.Client(world.locked.url).generate(prompt),
                  "key")
    checks.raises("more than run and wait", OverloadedError, lambda: busy.generate(
        prompt, max_new_tokens=2, do_sample=True, best_of=2), "no room")
    return checks
