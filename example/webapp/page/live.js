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

// How serious a state is, by the kind of component; the word itself is always
// shown beside the colour.
const severity = {
  circuit_breaker: { open: "bad", half_open: "warn" },
  balancer: { degraded: "warn", down: "bad", empty: "bad" },
  backend: { unhealthy: "bad" },
  sqlpool: { unavailable: "bad", closed: "warn" },
};

function stateOf(report) {
  return make("span", report.State.replaceAll("_", " "), "state " + (severity[report.Kind]?.[report.State] || "good"));
}

// value is the number of that name and attribute, 0 if there is none.
function value(report, name, attr) {
  return report.Values.find((v) => v.Name === name && (!attr || v.Attr.Value === attr))?.Number ?? 0;
}

function number(n) {
  return Number.isInteger(n) ? n.toLocaleString("en") : n.toFixed(2);
}

function row(list, label, text) {
  list.append(make("dt", label), make("dd", text));
}

// What each kind of component shows; other kinds show all that is not zero.
const bodies = {
  token_bucket(report, box) {
    const list = make("dl", "");
    row(list, "tokens left", number(value(report, "surgewall.rate_limiting.tokens.available")));
    row(list, "admitted", number(value(report, "surgewall.rate_limiting.requests", "acquired")));
    row(list, "throttled", number(value(report, "surgewall.rate_limiting.requests", "rejected")));
    box.append(list);
  },
  bulkhead(report, box) {
    const used = value(report, "surgewall.bulkhead.slots", "used");
    const max = value(report, "surgewall.bulkhead.slots.max");
    const full = value(report, "surgewall.bulkhead.full_time");
    const list = make("dl", "");
    row(list, "in flight", `${used} of ${max}`);
    row(list, "full for", full ? `${full.toFixed(1)} s` : "no");
    row(list, "admitted", number(value(report, "surgewall.bulkhead.requests", "acquired")));
    row(list, "refused", number(value(report, "surgewall.bulkhead.requests", "rejected")));
    box.append(list);
  },
  circuit_breaker(report, box) {
    const list = make("dl", "");
    for (const outcome of ["success", "failure", "ignored", "rejected"]) {
      row(list, outcome, number(value(report, "surgewall.circuit_breaker.calls", outcome)));
    }
    box.append(list);
  },
  sqlpool(report, box) {
    const idle = value(report, "db.client.connection.count", "idle");
    const used = value(report, "db.client.connection.count", "used");
    const max = value(report, "db.client.connection.max");
    const bar = make("div", "", "slots");
    for (let i = 0; i < max; i++) bar.append(make("i", "", i < used ? "used" : i < used + idle ? "idle" : ""));
    const list = make("dl", "");
    row(list, "in use", `${used} of ${max}`);
    row(list, "idle", number(idle));
    row(list, "waiting", number(value(report, "db.client.connection.pending_requests")));
    row(list, "acquired", number(value(report, "surgewall.pool.acquisitions")));
    row(list, "waited for", number(value(report, "surgewall.pool.acquisitions.waited")));
    box.append(bar, list);
  },
  balancer(report, box) {
    box.classList.add("wide");
    const table = make("table", "");
    const head = make("tr", "");
    for (const text of ["backend", "breaker", "in flight", "calls", "failed", "refused"]) head.append(make("th", text));
    table.append(head);
    for (const backend of report.Children || []) {
      const breaker = backend.Children?.[0];
      const line = make("tr", "");
      const state = make("td", "");
      state.append(stateOf(breaker || backend));
      line.append(
        make("td", backend.Name),
        state,
        make("td", number(value(backend, "surgewall.balancer.backend.in_flight"))),
        make("td", number(value(backend, "surgewall.balancer.backend.picks"))),
        make("td", number(value(backend, "surgewall.balancer.backend.calls", "failure"))),
        make("td", number(breaker ? value(breaker, "surgewall.circuit_breaker.calls", "rejected") : 0)),
      );
      table.append(line);
    }
    box.append(table);
  },
};

function card(report) {
  const box = make("article", "", "card");
  const title = make("h3", report.Name);
  if (report.State) title.append(stateOf(report));
  box.append(title, make("p", report.Kind.replaceAll("_", " "), "kind"));
  const body = bodies[report.Kind];
  if (body) {
    body(report, box);
    return box;
  }
  const list = make("dl", "");
  for (const v of report.Values) {
    const name = v.Name.split(".").at(-1).replaceAll("_", " ");
    row(list, v.Attr.Value ? `${name}: ${v.Attr.Value}` : name, number(v.Number));
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

  $("cards").replaceChildren(...state.components.map(card));

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
