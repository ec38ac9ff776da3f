"use strict";

const $ = (id) => document.getElementById(id);
const make = (tag, text, cls) => {
  const e = document.createElement(tag);
  e.textContent = text;
  if (cls) e.className = cls;
  return e;
};

let product = "";
const buyer = "visitor-" + Math.random().toString(36).slice(2, 8);

// How serious a component's state is; the word itself is always shown beside it.
const severity = {
  open: "bad", unhealthy: "bad", unavailable: "bad", closed_down: "bad",
  half_open: "warn", paused: "warn", limiting: "warn", draining: "warn",
};

function number(v) {
  const n = v.Number;
  return Number.isInteger(n) ? n.toLocaleString("en") : n.toFixed(2);
}

function card(report, parent) {
  const box = make("article", "", "card");
  const title = make("h3", parent ? `${parent} · ${report.Name}` : report.Name);
  if (report.State) title.append(make("span", report.State, "state " + (severity[report.State] || "good")));
  box.append(title, make("p", report.Kind.replaceAll("_", " "), "kind"));
  const list = make("dl", "");
  for (const v of report.Values || []) {
    if (v.Histogram) continue;
    const name = v.Name.split(".").slice(-2).join(" ").replaceAll("_", " ");
    list.append(make("dt", v.Attr.Value ? `${name}: ${v.Attr.Value}` : name), make("dd", number(v)));
  }
  box.append(list);
  return box;
}

function show(state) {
  product = state.product;
  $("product-name").textContent = state.name;
  $("price").textContent = (state.cents / 100).toLocaleString("en", { style: "currency", currency: "EUR" });
  const total = state.free + state.held + state.sold;
  $("stock-bar").style.width = total ? (100 * state.free) / total + "%" : "0";
  $("stock-meter").setAttribute("aria-valuemax", total);
  $("stock-meter").setAttribute("aria-valuenow", state.free);
  $("stock-text").textContent = `${state.free} of ${total} left, ${state.sold} sold, ${state.held} being paid for`;
  $("buy").disabled = state.free === 0;

  const cards = [];
  for (const report of state.components) {
    cards.push(card(report));
    for (const child of report.Children || []) cards.push(card(child, report.Name));
  }
  $("cards").replaceChildren(...cards);

  const lines = state.events.map((e) => {
    const line = make("li", "");
    line.append(make("time", new Date(e.at).toLocaleTimeString()), e.text);
    return line;
  });
  $("timeline").replaceChildren(...(lines.length ? lines : [make("li", "nothing yet", "quiet")]));
}

$("buy").addEventListener("click", async () => {
  $("buy").disabled = true;
  try {
    const resp = await fetch("/buy", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ product, buyer }),
    });
    const body = await resp.json().catch(() => ({}));
    const again = resp.headers.get("Retry-After");
    $("answer").textContent = resp.ok
      ? `Order ${body.order}: ${body.state}`
      : `${body.detail || body.title || resp.statusText}${again ? `; try again in ${again} s` : ""}`;
  } catch (err) {
    $("answer").textContent = "The shop cannot be reached.";
  }
  $("buy").disabled = false;
});

const live = new EventSource("/live");
live.onopen = () => { $("link").textContent = "live"; };
live.onerror = () => { $("link").textContent = "connection lost, trying again"; };
live.onmessage = (m) => show(JSON.parse(m.data));
