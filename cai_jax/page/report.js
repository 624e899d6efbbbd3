"use strict";
// The page's two aids: values of a plot under the pointer, and the browser of records. Text of
// records becomes text nodes, and nothing else: no function here reads markup.

const SVG = "http://www.w3.org/2000/svg";
const HITS = 200; // items of the list of records that are made at once
const LARGEST_TABLE = 4e6; // cells of a comparison of two texts; beyond it they differ as a whole

function make(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// Words that differ: [kind, text] with kind "same", "out" or "in", by a longest common subsequence.
function differences(before, after) {
  const a = before.match(/\s+|\S+/g) || [], b = after.match(/\s+|\S+/g) || [];
  let head = 0, tail = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  while (tail < a.length - head && tail < b.length - head
    && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const x = a.slice(head, a.length - tail), y = b.slice(head, b.length - tail);
  const found = [["same", a.slice(0, head).join("")]];
  const add = (kind, text) => {
    if (found[found.length - 1][0] === kind) found[found.length - 1][1] += text;
    else found.push([kind, text]);
  };
  if (x.length * y.length > LARGEST_TABLE) {
    add("out", x.join(""));
    add("in", y.join(""));
  } else {
    const width = y.length + 1, common = new Uint32Array((x.length + 1) * width);
    for (let i = x.length - 1; i >= 0; i--)
      for (let j = y.length - 1; j >= 0; j--)
        common[i * width + j] = x[i] === y[j] ? common[(i + 1) * width + j + 1] + 1
          : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    let i = 0, j = 0;
    while (i < x.length || j < y.length) {
      if (i < x.length && j < y.length && x[i] === y[j]) { add("same", x[i++]); j++; }
      else if (j === y.length
        || i < x.length && common[(i + 1) * width + j] >= common[i * width + j + 1])
        add("out", x[i++]);
      else add("in", y[j++]);
    }
  }
  add("same", a.slice(a.length - tail).join(""));
  return grouped(found.filter(([, text]) => text));
}

// A lone space between two changes is part of them: whole phrases are struck out, not each word.
function grouped(pieces) {
  const found = [];
  let out = "", added = "";
  const flush = () => {
    if (out) found.push(["out", out]);
    if (added) found.push(["in", added]);
    out = added = "";
  };
  pieces.forEach(([kind, text], i) => {
    const inside = (out || added) && i + 1 < pieces.length;
    if (kind === "out") out += text;
    else if (kind === "in") added += text;
    else if (inside && !text.trim()) { out += text; added += text; }
    else { flush(); found.push([kind, text]); }
  });
  flush();
  return found;
}

// Text with the words searched for marked.
function write(parent, text, words) {
  const lower = text.toLowerCase();
  let at = 0;
  while (at < text.length) {
    let next = text.length, length = 0;
    for (const word of words) {
      const found = lower.indexOf(word, at);
      if (found >= 0 && found < next) { next = found; length = word.length; }
    }
    if (next > at) parent.append(text.slice(at, next));
    if (length) parent.append(make("mark", "", text.slice(next, next + length)));
    at = next + length;
  }
  return parent;
}

function openBrowser(data) {
  const at = (id) => document.getElementById(id);
  const state = { of: data[0], shown: [], position: 0, words: [], changes: true,
    first: 0, last: 0 }; // of the shown records, those from first to last are in the list

  const words = (of, part) => {
    if (part.principle === undefined) return part.text;
    const wording = of.principles[part.principle];
    return wording ? part.principle + ": " + wording : part.principle;
  };
  const searched = (of, record) => record.searched ??= [record.id, record.title, record.group,
    ...record.parts.flatMap((part) => [part.label, words(of, part),
      ...(part.tags || []).map(([text]) => text)])].join("\n").toLowerCase();

  function choices(select, labels) {
    select.replaceChildren(...labels.map(([value, text]) => {
      const option = make("option", "", text);
      option.value = value;
      return option;
    }));
    select.disabled = labels.length < 2;
  }

  function open(index) {
    const of = state.of = data[index], groups = new Map();
    for (const record of of.records) groups.set(record.group, (groups.get(record.group) || 0) + 1);
    choices(at("group"), [["", "every " + of.group],
      ...[...groups].map(([name, count]) => [name, `${name} (${count})`])]);
    const names = Object.keys(of.records[0]?.measures || {});
    choices(at("order"), [["", "as in the file"], ...names.flatMap((name) =>
      [["-" + name, name + ", highest first"], ["+" + name, name + ", lowest first"]])]);
    const held = of.records.length;
    at("left-out").textContent = held < of.total
      ? `This page holds ${held.toLocaleString("en")} of ${of.total.toLocaleString("en")} records,`
        + ` evenly spaced; ${of.where} has all.`
      : `All ${held.toLocaleString("en")} records of ${of.where}.`;
    choose();
  }

  function choose() {
    const of = state.of, group = at("group").value, order = at("order").value;
    state.words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    state.shown = of.records.filter((record) => (!group || record.group === group)
      && state.words.every((word) => searched(of, record).includes(word)));
    if (order) {
      const sign = order[0] === "-" ? -1 : 1, name = order.slice(1);
      state.shown.sort((one, other) => sign * (one.measures[name] - other.measures[name]));
    }
    state.position = 0;
    state.first = state.last = 0;
    at("hits").replaceChildren();
    at("slider").max = Math.max(state.shown.length, 1);
    draw();
  }

  // Items of the list for shown records from..to, which come before or after those there are.
  function list(from, to) {
    const items = state.shown.slice(from, to).map((record, i) => {
      const item = make("li");
      item.id = "hit-" + (from + i);
      item.setAttribute("role", "option");
      item.setAttribute("aria-posinset", from + i + 1);
      item.setAttribute("aria-setsize", state.shown.length);
      write(item, record.title, state.words);
      item.addEventListener("click", () => go(from + i));
      return item;
    });
    if (from < state.first) at("hits").prepend(...items);
    else at("hits").append(...items);
    state.first = Math.min(state.first, from);
    state.last = Math.max(state.last, to);
  }

  function listAround(position) {
    if (position >= state.first && position < state.last) return;
    state.first = state.last = Math.max(position - HITS / 2, 0);
    at("hits").replaceChildren();
    list(state.first, Math.min(state.first + HITS, state.shown.length));
  }

  function listMore() {
    const hits = at("hits"), height = hits.scrollHeight;
    if (hits.scrollTop + hits.clientHeight > height - 200 && state.last < state.shown.length)
      list(state.last, Math.min(state.last + HITS, state.shown.length));
    else if (hits.scrollTop < 200 && state.first > 0) {
      list(Math.max(state.first - HITS, 0), state.first);
      hits.scrollTop += hits.scrollHeight - height;
    }
  }

  function go(position) {
    state.position = Math.min(Math.max(position, 0), Math.max(state.shown.length - 1, 0));
    draw();
  }

  function draw() {
    const { shown, position } = state, record = shown[position];
    at("position").textContent = record
      ? `${(position + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}` : "none";
    at("previous").disabled = position === 0;
    at("next").disabled = position >= shown.length - 1;
    at("slider").value = position + 1;
    at("slider").disabled = shown.length < 2;
    for (const item of at("hits").querySelectorAll("[aria-selected]"))
      item.removeAttribute("aria-selected");
    listAround(position);
    const item = at("hit-" + position), hits = at("hits");
    if (item) {
      item.setAttribute("aria-selected", "true");
      hits.setAttribute("aria-activedescendant", item.id);
      if (item.offsetTop < hits.scrollTop) hits.scrollTop = item.offsetTop;
      const below = item.offsetTop + item.offsetHeight - hits.clientHeight;
      if (below > hits.scrollTop) hits.scrollTop = below;
    } else hits.removeAttribute("aria-activedescendant");
    at("record").replaceChildren(...(record ? drawn(record)
      : [make("p", "note", "No record has all of these words.")]));
    at("changes").hidden = !record?.parts.some((part) => part.base !== undefined);
  }

  function drawn(record) {
    const nodes = [make("p", "note", [record.id, record.group].filter(Boolean).join(" · "))];
    let pair = null;
    for (const part of record.parts) {
      const node = drawnPart(record, part);
      if (!part.side) { nodes.push(node); pair = null; continue; }
      if (!pair) nodes.push(pair = make("div", "pair"));
      pair.append(node);
    }
    return nodes;
  }

  function drawnPart(record, part) {
    const node = make("div", part.rule ? "part rule" : "part");
    const body = make("div"), text = make("div", "words");
    if (part.base !== undefined && state.changes) {
      const before = words(state.of, record.parts[part.base]);
      for (const [kind, piece] of differences(before, part.text)) {
        if (kind === "same") write(text, piece, state.words);
        else text.append(write(make(kind === "in" ? "ins" : "del"), piece, state.words));
      }
    } else write(text, words(state.of, part), state.words);
    if (part.share !== undefined) {
      const bar = make("div", "bar");
      bar.append(make("span"));
      bar.firstChild.style.width = (100 * part.share).toFixed(1) + "%";
      body.append(bar);
    }
    body.append(text);
    for (const [tag, kind] of part.tags || []) body.append(make("span", "tag " + kind, tag));
    node.append(make("div", "label", part.label), body);
    return node;
  }

  function step(by) {
    go(state.position + by);
    at("browser").querySelector(".pager").scrollIntoView({ block: "nearest" });
    if (at("record").getBoundingClientRect().top < 0)
      at("record").scrollIntoView({ block: "start" });
  }

  function reveal() {
    at("warning").hidden = true;
    at("browser").hidden = false;
    open(0);
    at("collection").focus();
  }

  at("reveal").addEventListener("click", reveal);
  at("collection").addEventListener("change", () => open(Number(at("collection").value)));
  at("search").addEventListener("input", choose);
  at("hits").addEventListener("scroll", listMore);
  at("search").form.addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["group", "order"]) at(id).addEventListener("change", choose);
  at("previous").addEventListener("click", () => go(state.position - 1));
  at("next").addEventListener("click", () => go(state.position + 1));
  at("slider").addEventListener("input", () => go(Number(at("slider").value) - 1));
  at("changes").addEventListener("click", () => {
    state.changes = !state.changes;
    at("changes").setAttribute("aria-pressed", String(state.changes));
    draw();
  });

  const steps = { j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1 };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target, inList = target === at("hits");
    if (event.key === "Escape" && target === at("search")) { at("record").focus(); return; }
    if (target.matches("input, select, textarea")) return;
    if (event.key === "/") {
      event.preventDefault();
      (at("browser").hidden ? at("reveal") : at("search")).focus();
    } else if (at("browser").hidden) {
      return;
    } else if (inList && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      go(state.position + (event.key === "ArrowDown" ? 1 : -1));
    } else if (event.key in steps && !target.closest(".scroll")) {
      event.preventDefault();
      step(steps[event.key]);
    } else if (event.key === "d" && !at("changes").hidden) {
      at("changes").click();
    }
  });
}

// Values under the pointer. A plot has its series, and the ends of its axes, in data attributes.
function readOut(figure) {
  const svg = figure.querySelector("svg[data-series]");
  if (!svg) return;
  const series = JSON.parse(svg.dataset.series), frame = JSON.parse(svg.dataset.frame);
  const [left, right, top, bottom, low, high] = frame;
  const xs = [...new Set(series.flatMap((one) => one.points.map(([x]) => x)))];
  const line = document.createElementNS(SVG, "line"), note = make("output", "readout");
  line.setAttribute("class", "cursor");
  line.setAttribute("y1", top);
  line.setAttribute("y2", bottom);
  const place = (x) => svg.dataset.log === undefined ? x : Math.log(x);
  const said = (value) => String(Number(value.toPrecision(4)));
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const wanted = low + (at - left) / (right - left) * (high - low);
    const nearest = xs.reduce((best, x) =>
      Math.abs(place(x) - wanted) < Math.abs(place(best) - wanted) ? x : best);
    const across = left + (place(nearest) - low) / (high - low) * (right - left);
    line.setAttribute("x1", across);
    line.setAttribute("x2", across);
    svg.append(line);
    const values = series.flatMap((one) => one.points.filter(([x]) => x === nearest)
      .map(([, y, from, to]) => (series.length > 1 ? one.name + " " : "") + said(y)
        + (from === undefined ? "" : ` (${said(from)} to ${said(to)})`)));
    note.textContent = `${svg.dataset.label} ${Number(nearest.toPrecision(6))}: ${values.join(", ")}`;
    figure.append(note);
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", () => { line.remove(); note.remove(); });
}

for (const figure of document.querySelectorAll("figure")) readOut(figure);
const records = document.getElementById("records");
if (records) openBrowser(JSON.parse(records.textContent).collections);
