"""The Python package openai."""

import asyncio

import numpy
import openai

from common import Checks, key, prompt, question, tokens
from reference import Model
from common import model as folder

messages = [{"role": "user", "content": question}]


def run(world):
    checks = Checks("openai", "openai")
    with openai.OpenAI(base_url=world.open.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
        for part in (models, texts, chats, many, errors):
            part(world, client, checks)
    asyncio.run(at_once(world, checks))
    with openai.OpenAI(base_url=world.locked.url + "/v1", api_key=key, max_retries=0, timeout=60) as client:
        logprobs(world, client, checks)
        locked(world, client, checks)
    return [checks]


def models(world, client, checks):
    checks.about("models")
    checks.equal("names", [one.id for one in client.models.list()], ["tiny-chat", "tuned"])
    for name in ("tiny-chat", "tuned", "tuned@0.5"):
        checks.equal("a model by its name", client.models.retrieve(name).id, name)
    checks.raises("an unknown model", openai.NotFoundError, lambda: client.models.retrieve("no/body"), "no/body")


def texts(world, client, checks):
    checks.about("completions and their streams")
    for name in ("tiny-chat", "tuned"):
        request = {"model": name, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        whole = client.completions.create(**request, logprobs=1)
        choice = whole.choices[0]
        checks.equal("text, as `qlora generate` has it", choice.text, world.text[name])
        checks.equal("tokens of the prompt, as sentencepiece counts", whole.usage.prompt_tokens, len(world.prompt_ids))
        checks.equal("tokens of the text", whole.usage.completion_tokens, len(choice.logprobs.tokens))
        checks.equal("tokens spell the text", "".join(choice.logprobs.tokens), choice.text)
        checks.equal("text of ids", client.completions.create(
            **(request | {"prompt": world.prompt_ids})).choices[0].text, world.text[name])
        parts = list(client.completions.create(**request, stream=True, stream_options={"include_usage": True}))
        checks.equal("text of a stream", "".join(part.choices[0].text for part in parts[:-1]), world.text[name])
        checks.equal("usage of a stream", parts[-1].usage.total_tokens, whole.usage.total_tokens)
        checks.equal("the last reason", parts[-2].choices[0].finish_reason, choice.finish_reason)
    echoed = client.completions.create(model="tiny-chat", prompt=prompt, max_tokens=0, echo=True, logprobs=0)
    checks.equal("echo alone", echoed.choices[0].text, prompt)
    word = world.text["tiny-chat"].split()[1]
    stopped = client.completions.create(model="tiny-chat", prompt=prompt, max_tokens=tokens, temperature=0, stop=[word])
    checks.equal("a stop string", stopped.choices[0].text, world.text["tiny-chat"].split(word)[0])
    checks.equal("its reason", stopped.choices[0].finish_reason, "stop")


def chats(world, client, checks):
    checks.about("chats, their streams and the helper that reads them")
    for name in ("tiny-chat", "tuned"):
        request = {"model": name, "messages": messages, "temperature": 0}
        whole = client.chat.completions.create(**request)
        checks.equal("answer, as `qlora chat` has it", whole.choices[0].message.content, world.answer[name])
        checks.equal("tokens of the prompt, as sentencepiece counts", whole.usage.prompt_tokens, len(world.chat_ids))
        parts = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
        checks.equal("the first delta's role", parts[0].choices[0].delta.role, "assistant")
        checks.equal("answer of a stream", "".join(part.choices[0].delta.content or "" for part in parts[:-1]),
                     world.answer[name])
        checks.equal("usage of a stream", parts[-1].usage.total_tokens, whole.usage.total_tokens)
        with client.chat.completions.stream(**request, logprobs=True) as stream:
            events = [event.type for event in stream]
            final = stream.get_final_completion()
        checks.equal("answer of the helper", final.choices[0].message.content, world.answer[name])
        checks.true("events of the helper", "content.done" in events and "logprobs.content.done" in events, events)
    checks.about("early ends")
    stream = client.chat.completions.create(model="tuned", messages=messages, temperature=0, stream=True)
    next(iter(stream))
    stream.close()
    checks.equal("the next answer", client.chat.completions.create(
        model="tuned", messages=messages, temperature=0).choices[0].message.content, world.answer["tuned"])


def many(world, client, checks):
    checks.about("several prompts and choices, seeds")
    both = client.completions.create(model="tiny-chat", prompt=[prompt, world.prompt_ids], max_tokens=tokens,
                                     temperature=0)
    checks.equal("texts of two prompts", [one.text for one in both.choices], [world.text["tiny-chat"]] * 2)
    checks.equal("tokens of two prompts", both.usage.prompt_tokens, 2 * len(world.prompt_ids))
    drawn = [[one.message.content for one in client.chat.completions.create(
        model="tiny-chat", messages=messages, temperature=2, n=3, seed=seed).choices] for seed in (5, 5, 6)]
    checks.equal("answers of a seed", drawn[0], drawn[1])
    checks.true("answers of another", drawn[0] != drawn[2] and len(set(drawn[0])) > 1, drawn)


def errors(world, client, checks):
    checks.about("errors as the package's exceptions")

    def ask(**more):
        return lambda: client.chat.completions.create(**({"model": "tuned", "messages": messages} | more))

    def refused(field, **more):
        error = checks.raises(f"a wrong {field}", openai.BadRequestError, ask(**more))
        checks.equal("the field that it names", getattr(error, "param", None), field)
        return error

    refused("temperature", temperature=3)
    refused("messages", messages=[{"role": "user", "content": "a"}] * 2)
    refused("tools", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
    refused("response_format", response_format={"type": "json_object"})
    checks.equal("the code of a long reply", refused("max_tokens", max_tokens=5000).code, "context_length_exceeded")
    checks.equal("the code of a long prompt", refused(
        "messages", messages=[{"role": "user", "content": "word " * 600}]).code, "context_length_exceeded")
    error = checks.raises("an unknown model", openai.NotFoundError, ask(model="nobody"))
    checks.equal("its code", getattr(error, "code", None), "model_not_found")
    checks.raises("a route that is not there", openai.NotFoundError, lambda: client.embeddings.create(
        model="tuned", input="a"))


async def at_once(world, checks):
    checks.about("requests at once")
    async with openai.AsyncOpenAI(base_url=world.open.url + "/v1", api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(*(client.chat.completions.create(
            model=name, messages=messages, temperature=0) for name in ["tiny-chat", "tuned"] * 8))
    checks.equal("answers", [one.choices[0].message.content for one in answers],
                 [world.answer["tiny-chat"], world.answer["tuned"]] * 8)


def logprobs(world, client, checks):
    """Of the weights as they are in the files, beside numpy's."""
    checks.about("log-probabilities beside numpy's")
    model = Model(folder)
    choice = client.completions.create(model="tiny-chat", prompt=prompt, max_tokens=tokens, temperature=0, echo=True,
                                       logprobs=5).choices[0]
    found = choice.logprobs
    checks.equal("echo and text", "".join(found.tokens[1:]).lstrip(), choice.text)
    # Ids of what was drawn: greedy, each is the likeliest behind those before.
    ids = list(world.prompt_ids)
    rows = model.logprobs(ids)
    while len(ids) < len(found.tokens):
        ids.append(int(rows[-1].argmax()))
        rows = model.logprobs(ids)
    checks.equal("the first token's", found.token_logprobs[0], None)
    for at in range(1, len(ids)):
        checks.near(f"of token {at}", found.token_logprobs[at], rows[at - 1][ids[at]])
        likeliest = numpy.sort(rows[at - 1])[::-1][:5]
        top = sorted(found.top_logprobs[at].values(), reverse=True)
        for got, wanted in zip(top, likeliest, strict=False):
            checks.near(f"the likeliest at {at}", got, wanted)
        checks.true(f"how many at {at}", len(top) in (5, 6) and found.tokens[at] in found.top_logprobs[at], top)
    # The same of a chat, by its own route.
    content = client.chat.completions.create(model="tiny-chat", messages=messages, temperature=0, logprobs=True,
                                             top_logprobs=3).choices[0].logprobs.content
    ids = list(world.chat_ids)
    for at, token in enumerate(content):
        row = model.logprobs(ids)[-1]
        ids.append(int(row.argmax()))
        checks.near(f"of token {at} of a chat", token.logprob, row[ids[-1]])
        checks.equal("the likeliest is the token", token.top_logprobs[0].token, token.token)
        checks.equal("its bytes", bytes(token.bytes).decode(), token.token)
        for got, wanted in zip(token.top_logprobs, numpy.sort(row)[::-1][:3], strict=True):
            checks.near(f"the likeliest at {at} of a chat", got.logprob, wanted)
    checks.equal("what ends the chat", int(model.logprobs(ids)[-1].argmax()), world.pieces.eos_id())


def locked(world, client, checks):
    checks.about("keys and a full queue")
    for wrong in ("wrong", "sesam", "sesame1"):
        with openai.OpenAI(base_url=world.locked.url + "/v1", api_key=wrong, max_retries=0) as other:
            checks.raises("a wrong key", openai.AuthenticationError, other.models.list)
    error = checks.raises("more than run and wait", openai.RateLimitError, lambda: client.completions.create(
        model="tiny-chat", prompt=prompt, n=2, max_tokens=2))
    checks.equal("when to ask again", error.response.headers.get("retry-after") if error else None, "1")
    checks.true("behind it", client.completions.create(model="tiny-chat", prompt=prompt, max_tokens=2).choices[0].text)
