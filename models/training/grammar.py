"""A tiny template language with state: one grammar that both writes and parses stories.

A template is plain text with two kinds of mark-up:

    [a|b|c]           one of the alternatives, each equally likely; may nest, may be empty
    {var}             the word bound to `var`;  {var.attr} one of its forms
    {var:CLASS}       draw a word of CLASS, bind it to `var`, write it
    {var:CLASS!x!y}   the same, but not the word bound to `x` or `y`
    {#CLASS}          draw and write a word without binding it
    {=var:CLASS}      draw and bind, write nothing
    {>rule}           expand a named rule (a list of templates, each equally likely)

`a~` directly after the brace writes the article before the word, `^` capitalises it:
{a~#ADJ}, {^A.he}. Each random choice is uniform, so a story's log-probability along its
derivation is the sum of -ln(number of options). `parse` runs the same tree over a text,
keeping every state (position, bindings) that explains the text so far; states that meet
are merged by adding their probabilities, so what it returns is the exact probability of
the text under the grammar, whatever the number of derivations.
"""
import math
import re


class Word:
    """A lexicon entry: attribute -> tuple of equally likely forms ('n' is the plain form)."""

    def __init__(self, **forms):
        self.forms = {k: (v if isinstance(v, tuple) else tuple(v.split("|"))) for k, v in forms.items()}

    def __repr__(self):
        return self.forms["n"][0]


_AN_EXCEPTIONS = re.compile(r"^(uni|use|one|once)")


def _article(text):
    if text.startswith(("honest", "hour")):
        return "an " + text
    return ("an " if text[0] in "aeiou" and not _AN_EXCEPTIONS.match(text) else "a ") + text


class Lit:
    def __init__(self, text):
        self.text = text

    def gen(self, g, env, rng, out):
        out.append(self.text)
        return 0.0

    def parse(self, g, text, states):
        n, t = len(self.text), self.text
        res = {}
        for (pos, env), lp in states.items():
            if text.startswith(t, pos):
                res[(pos + n, env)] = lp
        if not res:
            g.note(text, states, t)
        return res


class Seq:
    def __init__(self, items):
        self.items = items

    def gen(self, g, env, rng, out):
        return sum([item.gen(g, env, rng, out) for item in self.items])

    def parse(self, g, text, states):
        for item in self.items:
            states = item.parse(g, text, states)
            if not states:
                break
        return states


def _merge(into, states, shift):
    for key, lp in states.items():
        lp += shift
        if key in into:
            a, b = into[key], lp
            hi, lo = (a, b) if a > b else (b, a)
            into[key] = hi + math.log1p(math.exp(lo - hi))
        else:
            into[key] = lp


class Choice:
    def __init__(self, options):
        self.options = options
        self.nats = math.log(len(options))

    def gen(self, g, env, rng, out):
        pick = self.options[int(rng.random() * len(self.options))]
        return self.nats + pick.gen(g, env, rng, out)

    def parse(self, g, text, states):
        res = {}
        for option in self.options:
            _merge(res, option.parse(g, text, states), -self.nats)
        return res


class Rule:
    def __init__(self, name):
        self.name = name

    def gen(self, g, env, rng, out):
        return g.rules[self.name].gen(g, env, rng, out)

    def parse(self, g, text, states):
        return g.rules[self.name].parse(g, text, states)


class Slot:
    """A word: a reference to a bound one, or a draw from a class (bound or not, silent or not)."""

    def __init__(self, slot, cls, attr, exclude, silent, cap, art):
        self.slot, self.cls, self.attr, self.exclude = slot, cls, attr, exclude
        self.silent, self.cap, self.art = silent, cap, art

    def _words(self, env):
        if self.cls is None:
            return (env[self.slot],)
        if not self.exclude:
            return self.cls
        banned = [env[i] for i in self.exclude]
        return [w for w in self.cls if w not in banned]

    def _text(self, form):
        if self.art:
            form = _article(form)
        return form[0].upper() + form[1:] if self.cap else form

    def gen(self, g, env, rng, out):
        words = self._words(env)
        word, nats = words[0], 0.0
        if len(words) > 1:
            word, nats = words[int(rng.random() * len(words))], math.log(len(words))
        if self.cls is not None and self.slot is not None:
            env[self.slot] = word
        if self.silent:
            return nats
        forms = word.forms[self.attr]
        form = forms[0]
        if len(forms) > 1:
            form, nats = forms[int(rng.random() * len(forms))], nats + math.log(len(forms))
        out.append(self._text(form))
        return nats

    def parse(self, g, text, states):
        res = {}
        for (pos, env), lp in states.items():
            words = self._words(env)
            for word in words:
                new = env
                if self.cls is not None and self.slot is not None:
                    new = env[: self.slot] + (word,) + env[self.slot + 1 :]
                nats = math.log(len(words))
                if self.silent:
                    _merge(res, {(pos, new): lp}, -nats)
                    continue
                forms = word.forms[self.attr]
                for form in forms:
                    t = self._text(form)
                    if text.startswith(t, pos):
                        _merge(res, {(pos + len(t), new): lp}, -nats - math.log(len(forms)))
        if not res:
            g.note(text, states, f"<{self.attr} of slot>")
        return res


_TAG = re.compile(r"^(=?)(\^?)(a~)?(?:>(\w+)|#(\w+)|(\w+)(?::(\w+))?)(?:\.(\w+))?((?:!\w+)*)$")


class Grammar:
    """Compiled rules plus the lexicon. `classes`: name -> list of Word; `rules`: name -> list of templates."""

    def __init__(self, classes, rules, shorthand=None, start="story"):
        self.classes, self.start = classes, start
        self.shorthand = shorthand or {}
        self.slots = {}
        self.far = (0, "")
        self.rules = {}
        for name, templates in rules.items():
            self.rules[name] = Choice([self._compile(t) for t in templates])

    def _slot(self, name):
        return self.slots.setdefault(name, len(self.slots))

    def _tag(self, tag):
        tag = self.shorthand.get(tag, tag)
        m = _TAG.match(tag)
        if not m:
            raise ValueError(f"bad tag {{{tag}}}")
        silent, cap, art, rule, anon, var, cls, attr, excl = m.groups()
        if rule:
            return Rule(rule)
        exclude = [self._slot(x) for x in excl.split("!") if x]
        cname = anon or cls
        if cname and cname not in self.classes:
            raise ValueError(f"no class {cname}")
        words = self.classes[cname] if cname else None
        return Slot(self._slot(var) if var else None, words, attr or "n", exclude, bool(silent), bool(cap), bool(art))

    def _compile(self, text):
        node, end = self._sequence(text, 0, top=True)
        if end != len(text):
            raise ValueError(f"unbalanced template: {text!r}")
        return node

    def _sequence(self, text, i, top=False):
        items, lit = [], ""
        while i < len(text) and (top or text[i] not in "|]"):
            c = text[i]
            if c in "[{":
                if lit:
                    items.append(Lit(lit))
                    lit = ""
                if c == "{":
                    end = text.index("}", i)
                    items.append(self._tag(text[i + 1 : end]))
                    i = end + 1
                else:
                    options = []
                    while True:
                        node, i = self._sequence(text, i + 1)
                        options.append(node)
                        if text[i] == "]":
                            break
                    items.append(Choice(options))
                    i += 1
            else:
                if c in "|]":
                    raise ValueError(f"stray {c!r} in {text!r}")
                lit += c
                i += 1
        if lit or not items:
            items.append(Lit(lit))
        return (items[0] if len(items) == 1 else Seq(items)), i

    def generate(self, rng):
        """Returns (text, nats): a story and -ln of the probability of the choices that made it."""
        out, env = [], [None] * len(self.slots)
        nats = self.rules[self.start].gen(self, env, rng, out)
        return "".join(out), nats

    def note(self, text, states, wanted):
        pos = max(pos for pos, _ in states) if states else 0
        if pos > self.far[0]:
            self.far = (pos, wanted)

    def parse(self, text):
        """Returns -ln p(text), exactly, or None with `self.far` = (position, expected) where it broke."""
        self.far = (0, "")
        start = {(0, (None,) * len(self.slots)): 0.0}
        states = self.rules[self.start].parse(self, text, start)
        total = {}
        for (pos, _), lp in states.items():
            if pos == len(text):
                _merge(total, {"": lp}, 0.0)
            elif pos > self.far[0]:
                self.far = (pos, "<end>")
        return -total[""] if total else None
