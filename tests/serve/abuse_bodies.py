"""Bodies that a server must refuse, made from its own description: each field of each path with values that the
description does not allow must give a status from 400 to 499 and an error that names the field; with other values any
answer but a fault."""
import json
import re
import time

INNER = {"parameters": {}, "stream_options": {"stream": True}}  # what an object's fields need beside it
EXTREMES = ("null", "true", "false", "0", "1", "-1", "1.5", "1e308", "-1e308", "1e-320", "1e-40", "1e-30", "-0.0",
            "2147483648",
            "9223372036854775808", "-9223372036854775809", "18446744073709551616", "1" + "0" * 300, '""', '"x"',
            '"\\u0000"', '"<s></s>"', '"' + "y" * 2000 + '"', "[]", "[[]]", "[null]", "[1]", "[1.5]", '["a"]',
            '["a",1]', "[" + ",".join(['"a"'] * 2000) + "]", "{}", '{"a":1}', '{"5":1e9}', '{"5":"a"}')
NO_JSON = ("NaN", "-Infinity", "1e400", "01", "+1", "0x1", ".5", "tru", "'x'", '"\\ud800"', '"\\x"', "")


def allows(schema, value):
    """Whether a schema allows a value: the words of JSON Schema that the description uses, others are an error."""
    kinds = {"null": value is None, "boolean": isinstance(value, bool), "string": isinstance(value, str),
             "array": isinstance(value, list), "object": isinstance(value, dict),
             "integer": not isinstance(value, bool) and (isinstance(value, int) or
                                                         isinstance(value, float) and value.is_integer()),
             "number": isinstance(value, (int, float)) and not isinstance(value, bool)}
    length = len(value) if isinstance(value, (str, list, dict)) else 0
    for word, want in schema.items():
        if word == "type":
            good = any(kinds[kind] for kind in ([want] if isinstance(want, str) else want))
        elif word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            good = not kinds["number"] or {"minimum": value >= want, "maximum": value <= want,
                                           "exclusiveMinimum": value > want, "exclusiveMaximum": value < want}[word]
        elif word in ("minLength", "maxLength"):
            good = not kinds["string"] or (length >= want if word == "minLength" else length <= want)
        elif word == "pattern":
            good = not kinds["string"] or re.search(want, value) is not None
        elif word == "propertyNames":
            good = not kinds["object"] or all(allows(want, name) for name in value)
        elif word == "maxProperties":
            good = not kinds["object"] or length <= want
        elif word in ("minItems", "maxItems"):
            good = not kinds["array"] or (length >= want if word == "minItems" else length <= want)
        elif word == "anyOf":
            good = any(allows(one, value) for one in want)
        elif word == "enum":
            good = value in want
        elif word == "const":
            good = value == want
        elif word == "items":
            good = not kinds["array"] or all(allows(want, item) for item in value)
        elif word == "properties":
            good = not kinds["object"] or all(allows(want[key], value[key]) for key in value if key in want)
        elif word == "additionalProperties":
            good = not kinds["object"] or all(allows(want, item) for item in value.values())
        elif word == "required":
            good = not kinds["object"] or all(key in value for key in want)
        else:
            assert word == "description", f"the description uses the word {word}, which is not known here"
            good = True
        if not good:
            return False
    return True


def example(name, schema):
    """A value that a needed field may have."""
    if name == "messages":
        return [{"role": "user", "content": "Who?"}]
    if name == "models":
        return ["tiny-chat"]
    if name == "probe":
        return 0
    assert allows(schema, "The"), f"no example of the needed field {name}"
    return "The"


def forms(description):
    """(path, schema, body that is good and asks for little) of every form of every body."""
    for path, methods in description["paths"].items():
        if "post" not in methods:
            continue
        schema = methods["post"]["requestBody"]["content"]["application/json"]["schema"]
        for form in schema.get("anyOf", [schema]):
            body = {name: example(name, form["properties"][name]) for name in form["required"]}
            if "max_tokens" in form["properties"]:
                body["max_tokens"] = 1
                if "prompt" in form["properties"] and "messages" in form["properties"]:
                    body["prompt"] = "The"
            elif "parameters" in form["properties"]:
                body["parameters"] = {"max_new_tokens": 1}
            yield path, form, body


def places(form, body):
    """(name as an error writes it, schema, write) of every field; write(text) gives a body with that text as its
    value."""
    for name, schema in form["properties"].items():
        rest = {key: value for key, value in body.items() if key != name}
        yield name, schema, lambda text, rest=rest, name=name: put(rest, name, text)
        for inner, inner_schema in schema.get("properties", {}).items():
            beside = {**rest, **INNER[name]}
            own = {key: value for key, value in body.get(name, {}).items() if key != inner}
            yield (inner, inner_schema, lambda text, beside=beside, own=own, name=name, inner=inner:
                   put(beside, name, put(own, inner, text)))
    if "messages" in form["properties"]:
        message = form["properties"]["messages"]["items"]["properties"]
        rest = {key: value for key, value in body.items() if key not in ("messages", "prompt")}
        for inner in ("role", "content"):
            own = {"role": "user", "content": "Who?"}
            del own[inner]
            yield (f"messages[0].{inner}", message[inner],
                   lambda text, rest=rest, own=own, inner=inner: put(rest, "messages", f"[{put(own, inner, text)}]"))


def put(rest, name, text):
    """The JSON of an object with one field more, whose value is a text that need not be JSON."""
    own = json.dumps(rest)[:-1]
    return f'{own}{"" if own == "{" else ","}"{name}":{text}}}'


def judge(path, name, body, bad, status, answer):
    """What is wrong with an answer; empty: nothing."""
    if status == 200:
        return "it is answered, and the description does not allow it" if bad else ""
    if not 400 <= status < 500:
        return f"the status is {status}"
    try:
        error = json.loads(answer)["error"]
    except (ValueError, KeyError, TypeError):
        return "the answer is no error"
    said = error if isinstance(error, str) else f'{error["param"]}: {error["message"]}'
    return f"the error does not name {name}: {said}" if bad and name not in said else ""


def large(server, report):
    """Bodies as large as they may be, of which each must be refused, and that leave little memory behind."""
    room = (2 << 20) - 200
    alternate = '{"role":"user","content":""},{"role":"assistant","content":""},'
    keys = ",".join(f'"{i}":1' for i in range(room // 11))
    lists = {name: unit * (room // len(unit)) for name, unit in
             (("numbers", "1,"), ("fractions", "1e9,"), ("lists", "[],"), ("objects", '{"a":{}},'), ("texts", '"",'),
              ("turns", alternate), ("same turns", '{"role":"user","content":""},'),
              ("parts", '{"type":"text","text":""},'))}
    bodies = [(path, f'{{"prompt":"a","inputs":"a","unknown":[{lists[name]}1]}}')
              for name in ("numbers", "fractions", "lists")
              for path in ("/v1/completions", "/generate", "/invocations")]
    bodies += [("/v1/completions", f'{{"prompt":[{lists[name]}1]}}')
               for name in ("numbers", "texts", "lists", "objects")]
    bodies += [("/v1/chat/completions", '{"messages":[%s{"role":"user","content":"a"}]}' % lists[name])
               for name in ("turns", "same turns")]
    bodies += [("/v1/chat/completions", '{"messages":[{"role":"user","content":[%s{}]}]}' % lists["parts"]),
               ("/v1/completions", '{"prompt":"a","logit_bias":{%s}}' % keys), ("/generate", '{"inputs":{%s}}' % keys),
               ("/compare", '{"prompt":"a","models":[%s"x"]}' % lists["texts"]),
               ("/generate", '{"inputs":"a","parameters":{"stop":[%s"x"]}}' % lists["texts"])]
    bodies += [(path, '{"%s":"%s"}' % (name, letter * (room // len(letter)))) for letter in ("a", " ", "\\u00e9")
               for path, name in (("/v1/completions", "prompt"), ("/v1/completions", "model"), ("/generate", "inputs"))]
    memory, slowest, client = server.memory(), (0.0, ""), server.client()
    for path, body in bodies:
        begun = time.perf_counter()
        status, answer = client.ask("POST", path, body.encode())
        slowest = max(slowest, (time.perf_counter() - begun, f"{path} {body[:40]}"))
        assert 400 <= status < 500, f"{path} {body[:100]}: {status} {answer[:200]}"
        assert len(answer) < 2000, f"{path} {body[:100]}: an error of {len(answer)} bytes"
    client.close()
    grown = (server.memory() - memory) / (1 << 20)
    report(f"{len(bodies)} bodies of 2 MiB: {grown:.1f} MB more, refusals took at most {slowest[0] * 1000:.0f} ms "
           f"({slowest[1]})")
    assert grown < 64, f"memory grew by {grown:.1f} MB"


def walk(server, report, depth):
    """Sends every body there is to be made, some of them nested so deep. Raises where one is answered as it must not
    be."""
    description = json.loads(server.ask("GET", "/openapi.json")[1])
    client, count, slowest, wrong = server.client(), 0, 0.0, []

    def check(path, name, body, bad):
        nonlocal client, count, slowest
        count += 1
        begun = time.perf_counter()
        status, answer = client.ask("POST", path, body.encode())
        if status >= 400:
            slowest = max(slowest, time.perf_counter() - begun)
        trouble = judge(path, name, body, bad, status, answer)
        if trouble:
            wrong.append(f"{path} {body[:300]}: {status}: {trouble}")
        if status == 0:
            client = server.client()

    for path, form, body in forms(description):
        check(path, "", json.dumps(body), False)
        for name in form["required"]:
            check(path, name, json.dumps({key: value for key, value in body.items() if key != name}), True)
        for name, schema, write in places(form, body):
            key = name.rpartition(".")[2]
            for text in EXTREMES:
                check(path, name, write(text), not allows(schema, json.loads(text)))
            for text in NO_JSON:
                check(path, key, write(text), True)
            check(path, key, write(f'1,"{key}":1'), True)
            check(path, key, write("[" * depth), True)
            check(path, "deeper", write('{"a":' * 1000 + "1" + "}" * 1000), True)
    client.close()
    report(f"bodies made from the description: {count}, refusals took at most {slowest * 1000:.0f} ms")
    assert not wrong, f"{len(wrong)} of {count} bodies are answered as they must not be:\n" + "\n".join(wrong[:40])
