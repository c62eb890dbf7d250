// Shows each event of api/v1/events. Names, reasons and replies come from outside: they enter
// the page by textContent and setAttribute on fixed names only, never as HTML. What is there is
// changed in place, so that the focus and a selected text survive the next second.
"use strict";

const RETRY_MS = 3000; // after a broken stream
const QUIET_MS = 10000; // a stream that says nothing for so long is dead
const HIDDEN_MS = 60000; // a browser has six connections to a host; a tab nobody sees needs none
const HISTORY_MS = 600000; // what the chart shows
const WIDTH = 600, HEIGHT = 120;

const at = (id) => document.getElementById(id);
const write = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const many = (count) => count.toLocaleString("en");
const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");
const per = (rate) => `${rate.toFixed(1)}/s`;

function span(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]])
    if (seconds >= 2 * size) return `${Math.floor(seconds / size)} ${unit}`;
  return `${seconds} s`;
}

function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let step = 0;
  for (; bytes >= 1000 && step < units.length - 1; step++) bytes /= 1000;
  return `${bytes.toFixed(step ? 1 : 0)} ${units[step]}`;
}

// One child of `parent` for each item: kept, made by `make` or taken away, then filled by `fill`.
function each(parent, items, make, fill) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  items.forEach((item, n) => fill(parent.children[n] || parent.appendChild(make()), item));
}

function make(tag, ...children) {
  const node = document.createElement(tag);
  node.append(...children);
  return node;
}

// Rows of cells; `kinds` are the classes of the cells.
function rows(body, table, kinds) {
  const cell = (kind) => { const td = make("td"); td.className = kind; return td; };
  each(body, table, () => make("tr", ...kinds.map(cell)),
    (row, texts) => texts.forEach((text, n) => write(row.children[n], text)));
}

function terms(list, pairs) {
  each(list, pairs, () => make("div", make("dt"), make("dd")), (pair, [name, text]) => {
    write(pair.children[0], name);
    write(pair.children[1], text);
  });
}

const besides = (one) => ["parked", "quarantined"].filter((state) => one[state])
  .map((state) => `${many(one[state])} ${state}`).join(", ");
const oldest = (one, now) => one.oldest_at === null ? "" : span(now - one.oldest_at);

// What AWS says, if it could be asked: [term, words] or none.
function awsTerms(aws, now) {
  if (!aws) return [];
  const day = aws.max_24_h === null ? "" : ` of ${many(aws.max_24_h)}`;
  const facts = [
    ...aws.troubles,
    aws.rate_max_per_s === null ? "" : `at most ${per(aws.rate_max_per_s)}`,
    aws.sent_24_h === null ? "" : `${many(aws.sent_24_h)} sent in 24 h${day}`,
    `as of ${span(now - aws.said_at)} ago`,
  ];
  return [["AWS says", facts.filter(Boolean).join("; ")]];
}

function showUpstreams(figures) {
  const card = () => {
    const node = make("div", make("h3"), make("p"), make("dl"));
    node.className = "upstream";
    return node;
  };
  each(at("upstreams"), figures.upstreams, card, (node, one) => {
    const left = one.quota_left === null ? "" : `, ${many(one.quota_left)} left`;
    const room = one.quota_room_at ? `, room expected in ${span(one.quota_room_at - figures.now)}` : "";
    const what = one.quota_spent_at ? "spent, asking again in" : "the rest is the priority lane's, more in";
    const again = one.quota_next_at ? `; ${what} ${span(one.quota_next_at - figures.now)}${one.quota_spent_at ? room : ""}` : "";
    write(node.children[0], one.name);
    write(node.children[1], one.doing);
    terms(node.children[2], [
      ["sent", `${per(one.sent_per_s)} of ${per(one.rate_per_s)}`],
      ["rate", one.rate_words],
      ["refused", `${(one.refused_share * 100).toFixed(2)} %`],
      ["sessions", `${one.sessions_open} open, ${one.sessions_busy} busy, at most ${one.sessions_ceiling}`],
      ["quota", `${many(one.quota_used)} in 24 h${left}${again}`],
      ...awsTerms(one.aws, figures.now),
    ]);
  });
}

function showWaiting(figures) {
  const several = figures.upstreams.length > 1;
  const line = (one) => [many(one.waiting), besides(one), oldest(one, figures.now)];
  rows(at("lanes"), figures.lanes.map((one) => [one.lane, ...line(one)]), ["", "n", "besides", ""]);
  rows(at("streams"), figures.streams.map((one) => [
    one.campaign || "(no campaign)",
    several ? `${one.lane}, ${one.upstream}` : one.lane,
    ...line(one),
  ]), ["", "", "n", "besides", ""]);
  const more = figures.streams_more;
  write(at("streams-more"), figures.streams.length ? more ? `and ${many(more)} more` : "" : "nothing");
  at("by-campaign").hidden = !figures.streams.length;
}

function copyButton(code) {
  const button = make("button", "copy");
  button.type = "button";
  // Browsers give the clipboard to HTTPS and to this machine only.
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code.textContent);
    write(at("spoken"), "copied");
  });
  return button;
}

function showHolds(figures) {
  const item = () => {
    const code = make("code");
    return make("li", make("h3"), make("p"), make("p"), make("p", "release: ", code, " ", copyButton(code)));
  };
  each(at("holds"), figures.holds, item, (node, one) => {
    const probe = one.next_probe_at;
    const next = probe ? `tried again in ${span(probe - figures.now)}` : "until released";
    const day = new Date(one.since_at).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
    const [title, reason, facts, way] = node.children;
    write(title, one.key);
    write(reason, one.reason);
    write(facts, `by ${one.source} for ${span(figures.now - one.since_at)}, since ${day}; ${next}`);
    facts.className = "dim";
    write(way.children[0], one.release);
    way.children[1].setAttribute("aria-label", `copy the command that releases ${one.key}`);
  });
  at("held").hidden = !figures.holds.length;
  write(at("holds-more"), figures.holds_more ? `and ${many(figures.holds_more)} more: relay status` : "");
}

function showRest(figures) {
  const room = figures.room;
  const stalled = room.stalled_s ? ` STALLED for ${span(room.stalled_s * 1000)}: clients wait.` : "";
  write(at("room"), `${size(room.used_bytes)} used of at most ${size(room.size_max_bytes)}, ` +
    `${size(room.free_bytes)} free on the disk (intake stalls below ${size(room.free_min_bytes)}).${stalled}`);
  terms(at("totals"), Object.entries(figures.totals).sort().map(([name, count]) => [name, many(count)]));
  const several = figures.upstreams.length > 1;
  rows(at("events"), figures.events.map((one) => [
    `${span(figures.now - one.at)} ago`, several ? `${one.upstream}: ${one.text}` : one.text,
  ]).reverse(), ["", ""]);
  at("lately").hidden = !figures.events.length;
  const replies = Object.entries(figures.unknown_replies);
  rows(at("replies"), replies.map(([text, count]) => [many(count), text]), ["n", ""]);
  at("unknown").hidden = !replies.length;
  const up = figures.started_at ? `, up for ${span(figures.now - figures.started_at)}` : "";
  write(at("version"), `${figures.version}${up}`);
}

// -- The chart: seconds gathered in this page, gone with it ------------------------------------

const history = [];

function remember(figures) {
  const sum = (name) => figures.upstreams.reduce((total, one) => total + (one[name] || 0), 0);
  const known = figures.upstreams.length && figures.upstreams.every((one) => one.limit_per_s);
  history.push({ at: figures.now, sent: sum("sent_per_s"), rate: sum("rate_per_s"), limit: known ? sum("limit_per_s") : null });
  while (history[0].at < figures.now - HISTORY_MS || history[0].at > figures.now) history.shift();
}

function path(name, top, since, length) {
  let last = -Infinity, way = "";
  for (const point of history) {
    if (point[name] === null) continue;
    const x = (point.at - since) / length * WIDTH;
    const y = HEIGHT - Math.min(1, point[name] / top) * (HEIGHT - 4);
    way += `${point.at - last > QUIET_MS ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
    last = point.at;
  }
  return way;
}

function draw(now) {
  const length = Math.max(60000, now - history[0].at), since = now - length;
  // A rate that was never tried may be far above what is sent; it must not flatten the rest.
  const seen = Math.max(...history.map((point) => Math.max(point.sent, point.limit || 0)));
  const top = 1.1 * (seen || Math.max(...history.map((point) => point.rate)) || 1);
  for (const name of ["limit", "rate", "sent"])
    at(`${name}-line`).setAttribute("d", path(name, top, since, length));
  const last = history[history.length - 1];
  write(at("scale"), `last ${span(length)}, 0 to ${per(top)}`);
  at("chart").setAttribute("aria-label", `sent ${per(last.sent)}, rate ${per(last.rate)}, limit ` +
    (last.limit === null ? "not known yet" : per(last.limit)));
}

// -- The stream ---------------------------------------------------------------------------------

let source = null, timer = 0, hiding = 0, heardAt = 0, isLost = false, why = "", said = "";

function show(figures) {
  at("glance").dataset.level = figures.glance.level;
  write(at("glance"), figures.glance.text);
  document.title = `${figures.glance.level === "bad" ? "! " : ""}${figures.glance.text} · relay`;
  // Spoken when it means something else, not for each new number.
  const meaning = figures.glance.level + figures.glance.text.replace(/[\d.,]+/g, "");
  if (meaning !== said) write(at("spoken"), figures.glance.text);
  said = meaning;
  showHolds(figures);
  showUpstreams(figures);
  showWaiting(figures);
  showRest(figures);
  remember(figures);
  draw(figures.now);
  at("figures").hidden = false;
}

function showTouch() {
  document.body.classList.toggle("stale", isLost);
  at("lost").hidden = !isLost;
  if (!isLost) return;
  const since = heardAt ? ` since ${clock(heardAt)} (${span(Date.now() - heardAt)}); what you see is of then` : "";
  write(at("lost"), `lost touch with the relay${since}${why}. Trying again by itself.`);
}

function lose() {
  if (!isLost) {
    said = "";
    write(at("spoken"), "lost touch with the relay");
    document.title = "! lost touch · relay";
  }
  isLost = true;
  showTouch();
}

// An EventSource does not tell why it was refused.
async function ask() {
  try {
    const answer = await fetch("api/v1/events", { method: "HEAD" });
    why = { 401: ": it wants its token, load the page anew", 503: ": as many watch as it lets, or it is stopping" }[answer.status] || "";
  } catch {
    why = "";
  }
  if (isLost) showTouch();
}

function disconnect() {
  clearTimeout(timer);
  if (source) source.close();
  source = null;
}

function again() {
  disconnect();
  lose();
  ask();
  timer = setTimeout(connect, RETRY_MS);
}

function connect() {
  disconnect();
  const begunAt = Date.now();
  source = new EventSource("api/v1/events");
  source.onmessage = (event) => {
    heardAt = Date.now();
    isLost = false;
    showTouch();
    show(JSON.parse(event.data));
  };
  source.onerror = again;
  source.begunAt = begunAt;
}

setInterval(() => {
  if (source && Date.now() - Math.max(heardAt, source.begunAt) > QUIET_MS) again();
  else if (isLost) showTouch();
}, 1000);

document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) hiding = setTimeout(disconnect, HIDDEN_MS);
  else if (!source) connect();
});

connect();
