// A search that finds results one after the other, each better or worse than those before.

const TEXTS = {
  rivers: "A river wears away the land that it flows through, and carries sand and mud to the sea.",
  deltas: "Where a river meets the sea it drops its mud, and the land grows: that is a delta.",
  lakes: "A lake is water with land all around it. Rivers fill lakes, and may flow out of them.",
  glaciers: "A glacier is a river of ice. It grinds valleys into the land that are round below.",
  deserts: "In a desert the wind moves the land: sand travels in dunes, grain by grain.",
  volcanoes: "A volcano makes land from molten rock, which cools and becomes hard.",
  coasts: "Waves break the coast in one place and build beaches of sand in another.",
  forests: "Roots of trees hold the land, so that rain does not wash it into the river.",
};
const MOST_RESULTS = 5;
const PAUSE_MS = 150;

/** Yields the best results so far, as [id, text], each time that there are other ones. */
export async function* search(question) {
  const words = new Set(question.toLowerCase().match(/\p{L}+/gu) ?? []);
  const found = [];
  for (const [id, text] of Object.entries(TEXTS)) {
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    const score = text.toLowerCase().match(/\p{L}+/gu).filter((word) => words.has(word)).length;
    found.push({ id, text, score });
    found.sort((a, b) => b.score - a.score);
    const best = found.slice(0, MOST_RESULTS);
    if (best.some((each) => each.id === id)) yield best.map((each) => [each.id, each.text]);
  }
}
