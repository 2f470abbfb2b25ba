"""Names of clusters from a language model: what is asked, what counts as an answer, and votes over several asks."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from tenfold.annotators.chat import Endpoint
from tenfold.annotators.ontology import Ontology
from tenfold.errors import EndpointError

#: Clusters in a request; longer answers lose lines.
MOST_CLUSTERS = 30
#: Share of words that a name and a term have in common at which they are taken as the same.
ALIKE = 0.8
_WORD = re.compile(r"[a-z0-9+]+")


class Answer(NamedTuple):
    """What one answer says of a cluster; `name` is empty where it rests on genes that were not given."""

    name: str
    genes: list[str]
    confidence: float
    alternative: str


class Named(NamedTuple):
    """What all answers together say of a cluster.

    Attributes
    ----------
    name
        The most frequent one; empty where no answer could be used.
    shares
        Of each name among the answers that rest on the genes given, most frequent first.
    entropy
        Of the shares of all names, in nats; 0 where all agree.
    answers
        All of them.
    """

    name: str
    shares: dict[str, float]
    entropy: float
    answers: list[Answer]


def prompt_for(genes: dict[int, list[str]], tissue: str = "", species: str = "") -> str:
    """Return the question about some clusters: numbers, gene names, tissue and species, and nothing else of the data.

    Parameters
    ----------
    genes
        Marker genes by number of the cluster, in the order in which they are to be listed.
    tissue, species
        As the user gave them, or empty.
    """
    whose = " ".join(part for part in (species, tissue) if part)
    lines = [f"{number}: {', '.join(names)}" for number, names in genes.items()]
    return "\n".join([
        f"Identify the cell type of each cluster of {whose + ' ' if whose else ''}cells from its marker genes.",
        f"Answer with exactly {len(genes)} lines, one JSON object a cluster and no other text:",
        '{"cluster": <number>, "cell_type": "<name>", "supporting_genes": [<genes of that cluster>], '
        '"confidence": <0 to 1>, "alternative": "<second guess>"}',
        "Name cell types in the singular, as in the Cell Ontology. A cluster may be a mixture of types.",
        *lines,
    ])  # fmt: skip


def parsed(text: str, genes: dict[int, list[str]]) -> dict[int, Answer]:
    """Return the answer for each cluster.

    Raises
    ------
    EndpointError
        A line is not JSON, has no name, or is of no cluster; or there is not one line for each cluster.
    """
    lines = [line.strip().rstrip(",") for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("```") and line not in "[]"]
    if len(lines) != len(genes):
        raise EndpointError(f"The answer has {len(lines)} lines for {len(genes)} clusters: {text[:200]!r}")
    found: dict[int, Answer] = {}
    for line in lines:
        try:
            said = json.loads(line)
            number, name = int(said["cluster"]), said["cell_type"]
        except (ValueError, KeyError, TypeError) as error:
            raise EndpointError(f"A line of the answer is not the JSON that was asked for: {line[:200]!r}") from error
        if number not in genes or number in found:
            raise EndpointError(f"The answer names cluster {number}, which was not asked about, or names it twice.")
        if not isinstance(name, str) or not name.strip():
            raise EndpointError(f"The answer has no cell type for cluster {number}: {line[:200]!r}")
        found[number] = _answer(said, name.strip(), genes[number])
    return found


def _answer(said: dict[str, Any], name: str, given: list[str]) -> Answer:
    genes = said.get("supporting_genes")
    genes = [str(gene) for gene in genes] if isinstance(genes, list) else []
    known = {gene.upper() for gene in given}
    if any(gene.upper() not in known for gene in genes):
        name = ""  # made up: it did not read the list
    confidence = said.get("confidence")
    sure = float(confidence) if isinstance(confidence, (int, float)) else float("nan")
    return Answer(name, genes, sure, str(said.get("alternative") or ""))


def ask(
    endpoint: Endpoint, genes: dict[int, list[str]], said_of: tuple[str, str], temperature: float, seed: int
) -> tuple[dict[int, Answer], dict[str, Any]]:
    """Return the answer for each cluster, and what was asked and answered.

    An answer that cannot be read, or that rests on genes that were not given, is asked for again with another seed.

    Raises
    ------
    EndpointError
        No answer could be read, after the retries of the endpoint.
    """
    prompt = prompt_for(genes, *said_of)
    for trial in range(endpoint.retries + 1):
        body = endpoint.body(prompt, temperature, seed + 1000 * trial)
        text = endpoint.kept(body)
        new = text is None
        if text is None:
            text = endpoint.send(body)
        last = trial == endpoint.retries
        try:
            found = parsed(text, genes)
        except EndpointError as error:
            if last:
                tries = endpoint.retries + 1
                raise EndpointError(f"The model '{endpoint.model}' failed {tries} times. {error}") from error
            continue
        if last or all(answer.name for answer in found.values()):
            if new:
                endpoint.keep(body, text)
            return found, {"prompt": prompt, "seed": body["seed"], "answer": text}
    raise AssertionError  # the last trial returns or raises


def votes_of(answers: dict[int, list[Answer]], ontology: Ontology | None) -> dict[int, Named]:
    """Return what the answers say of each cluster.

    Spellings that differ in case, hyphens or number count as one name, written as it was most often; with an ontology
    names that mean one of its terms are that term.
    """
    given = [answer.name for each in answers.values() for answer in each if answer.name]
    spelt = Counter(given)
    keys = {name: _key(name, ontology) for name in spelt}
    shown: dict[str, str] = {}
    for name in sorted(spelt, key=lambda name: (-spelt[name], name)):
        term = None if ontology is None else term_of(name, ontology)
        shown.setdefault(keys[name], term or name)
    named = {}
    for number, each in answers.items():
        votes = Counter(shown[keys[answer.name]] for answer in each if answer.name)
        total = sum(votes.values())
        shares = {name: votes[name] / total for name in sorted(votes, key=lambda name: (-votes[name], name))}
        parts = np.array(list(shares.values()))
        entropy = float(-(parts * np.log(parts)).sum()) + 0.0
        named[number] = Named(next(iter(shares), ""), shares, entropy, each)
    return named


def _key(name: str, ontology: Ontology | None) -> str:
    term = None if ontology is None else term_of(name, ontology)
    return term or " ".join(_words(name))


def _words(name: str) -> list[str]:
    words = _WORD.findall(name.lower())
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words]


def term_of(name: str, ontology: Ontology) -> str | None:
    """Return the term of the ontology that a name means: by name or synonym, else by words; None for free text."""
    singular = " ".join(_words(name))
    found = ontology.find(name) or ontology.find(singular)
    if found is not None:
        return found
    own = set(singular.split())
    shares = {term: _overlap(own, set(_words(term))) for term in ontology.parents}
    best = max(sorted(shares), key=shares.__getitem__, default=None)
    return best if best is not None and shares[best] >= ALIKE else None


def _overlap(first: set[str], second: set[str]) -> float:
    return len(first & second) / max(len(first | second), 1)
