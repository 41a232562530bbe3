// Runs in a page around the one that is looked at. What it finds is written as JSON, places in pixels: [left, top, right, bottom].
addEventListener("load", () => {
  const inside = document.querySelector("iframe").contentDocument;
  const root = inside.documentElement;
  const place = (element) => {
    const { left, top, right, bottom } = element.getBoundingClientRect();
    return [left, top, right, bottom];
  };
  const all = (selector) => [...inside.querySelectorAll(selector)];
  const named = (element) => `${element.tagName} ${(element.getAttribute("alt") || element.textContent).slice(0, 40)}`;
  // What is in a box of its own that scrolls may be as wide as it likes.
  const free = (element) => !element.closest(".scroll");
  const wide = all("body *").filter((element) => free(element) && place(element)[2] > root.clientWidth + 0.5);

  // What of an element its scrolling box shows, and the window.
  const visible = (element) => {
    const box = element.closest(".scroll");
    const [left, top, right, bottom] = place(element);
    const [l, t, r, b] = box ? place(box) : [0, 0, root.clientWidth, Infinity];
    const shown = [Math.max(left, l), Math.max(top, t), Math.min(right, r), Math.min(bottom, b)];
    return shown[2] - shown[0] >= 2 && shown[3] - shown[1] >= 2 ? shown : null;
  };

  // Lines of text as they are drawn.
  const lines = [];
  const walker = inside.createTreeWalker(inside.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    if (!text) continue;
    const range = inside.createRange();
    range.selectNodeContents(walker.currentNode);
    // Hidden below the edge of a scrolling box it lies on nothing.
    if (!visible(walker.currentNode.parentElement)) continue;
    for (const { left, top, right, bottom } of range.getClientRects()) {
      lines.push({ text: text.slice(0, 40), place: [left, top, right, bottom] });
    }
  }
  lines.sort((a, b) => a.place[1] - b.place[1]);
  const overlaps = [];
  lines.forEach((a, i) => {
    for (const b of lines.slice(i + 1)) {
      if (b.place[1] > a.place[3]) break;
      const across = Math.min(a.place[2], b.place[2]) - Math.max(a.place[0], b.place[0]);
      const down = Math.min(a.place[3], b.place[3]) - Math.max(a.place[1], b.place[1]);
      // Boxes of lines are higher than their letters.
      if (across > 1 && down > 0.4 * Math.min(a.place[3] - a.place[1], b.place[3] - b.place[1])) overlaps.push([a, b]);
    }
  });

  const heads = all("h1, h2");
  const sections = heads.map((head, i) => ({
    title: head.textContent,
    top: place(head)[1],
    bottom: i + 1 < heads.length ? place(heads[i + 1])[1] : place(inside.querySelector("footer"))[1],
  }));
  const pictures = all("img, svg image").map((picture) => ({
    name: named(picture),
    loaded: picture.tagName !== "IMG" || (picture.complete && picture.naturalWidth > 0),
    place: visible(picture),
  }));
  document.getElementById("found").textContent = JSON.stringify({
    width: root.clientWidth,
    scroll: root.scrollWidth,
    height: place(inside.body)[3],
    wide: wide.map(named),
    overlaps,
    sections,
    pictures,
  });
});
