// The page of the mask laboratory: native controls, and layers over the picture. It sends messages
// and draws the frames that come back (`session.py`), at most one on its way, so that no queue grows.

const MOST_BYTES = 8_000_000, TICK = 150, PATIENCE = 5000;

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    name in made && name !== "list" ? (made[name] = value) : made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function url(view, type) {
  return URL.createObjectURL(new Blob([view], { type }));
}

function show(image, address) {
  const old = image.src;
  image.src = address;
  if (old.startsWith("blob:")) image.decode().catch(() => {}).then(() => URL.revokeObjectURL(old));
}

function floats(view) {
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

function render({ model, el }) {
  const me = Math.random().toString(36).slice(2);
  const controls = {}, panels = [], cell = { row: 0, column: 0 };
  let frame, cells = {}, picture = { key: null, url: "" };
  let pending = null, asked = 0, playing = null;

  // ---- messages
  function send(message, buffers = []) {
    model.send({ ...message, view: me, picture: picture.key }, undefined, buffers);
  }
  function change(values) {
    pending = { ...pending, ...values };
    flush();
  }
  function flush() {
    if (!pending || Date.now() - asked < PATIENCE) return;
    asked = Date.now();
    send({ kind: "set", values: pending });
    pending = null;
  }
  function hear(message, buffers) {
    if (message.view && message.view !== me && message.kind === "file") return;
    if (message.kind === "file") {
      const address = url(buffers[0], message.type);
      node("a", { href: address, download: message.name }).click();
      setTimeout(() => URL.revokeObjectURL(address), PATIENCE);
      return say(`saved ${message.name}`);
    }
    frame = message;
    draw(buffers);
    if (message.view === me) asked = 0;
    flush();
  }

  // ---- the skeleton of the page
  const form = node("form", { className: "controls", onsubmit: () => false });
  form.setAttribute("aria-label", "controls of the masks");
  const stage = node("div", { className: "panels" });
  const sentence = node("p", { className: "sentence", "aria-live": "polite" });
  const error = node("p", { className: "error", role: "alert" });
  const reading = node("p", { className: "reading", "aria-live": "polite" });
  const lines = node("ul", { className: "lines" });
  const texts = node("pre", { tabIndex: 0 });
  const legend = node("div", { className: "legend" });
  const status = node("span", { className: "status", role: "status" });
  const boxes = node("input", { type: "checkbox", checked: true });
  boxes.onchange = () => el.classList.toggle("unboxed", !boxes.checked);
  const played = node("select", { "aria-label": "slider to play" });
  const play = button("play", toggle);
  const chooser = node("input", { type: "file", accept: "image/*" });
  chooser.onchange = () => offer(chooser.files);
  const path = node("input", { type: "text", placeholder: "path of a file, then Enter" });
  let opened = ""; // the path that was asked for; what is typed since then stays
  path.onchange = () => {
    opened = path.value.trim();
    if (opened) change({ image: opened });
  };
  const byPath = node("label", { className: "own" }, "own picture by path ", path);
  const bar = node("div", { className: "bar" },
    button("pin as A", () => send({ kind: "pin" })),
    button("reset", () => send({ kind: "reset" })),
    node("label", {}, boxes, " boxes"),
    button("copy key=value", () => copy(frame.texts.settings)),
    button("copy DFMSDLoss(…)", () => copy(frame.texts.code)),
    button("save PNG", () => send({ kind: "png", boxes: boxes.checked })),
    played, play, button("save GIF", () => send({ kind: "gif", slider: played.value })), status);
  const own = node("label", { className: "own" }, "own picture: choose, drop or paste ", chooser);
  const words = node("div", { className: "words" }, sentence, error, reading, lines,
    node("details", {}, node("summary", {}, "settings as text"), texts));
  el.classList.add("mask-lab");
  el.addEventListener("keydown", (event) => event.stopPropagation()); // JupyterLab binds arrow keys
  el.append(node("div", { className: "page" },
    node("div", { className: "left" }, form, own, byPath),
    node("div", { className: "right" }, stage, words, bar)));

  function button(label, act) {
    return node("button", { type: "button", onclick: act }, label);
  }
  function say(text) {
    status.textContent = text;
  }
  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      say("copied");
    } catch {
      texts.parentNode.open = true; // without the right to the clipboard: to be copied by hand
      getSelection().selectAllChildren(texts);
      say("select and copy it below");
    }
  }

  // ---- the visitor's own picture
  async function offer(files) {
    const file = [...files].find((one) => one.type.startsWith("image/"));
    if (!file) return fail("that is no picture");
    if (file.size > MOST_BYTES) return fail("a picture may have 8 MB at most; reduce it");
    send({ kind: "picture", name: file.name }, [await file.arrayBuffer()]);
  }
  function fail(text) {
    error.textContent = text;
  }
  el.addEventListener("dragover", (event) => event.preventDefault());
  el.addEventListener("drop", (event) => {
    event.preventDefault();
    offer(event.dataTransfer.files);
  });
  function pasted(event) {
    if (event.clipboardData?.files.length && (el.matches(":hover") || el.contains(event.target)))
      offer(event.clipboardData.files);
  }
  document.addEventListener("paste", pasted);

  // ---- controls
  function build(spec) {
    const id = `${me}-${spec.name}`, kind = spec.stops ? "input" : "select";
    const input = node(kind, { id, name: spec.name, "aria-describedby": `${id}-why` });
    const value = node("output", { "aria-hidden": "true" });
    const why = node("small", { id: `${id}-why` });
    const label = node("label", { htmlFor: id }, spec.label);
    form.append(node("div", { className: "control" }, label, input, value, why));
    if (spec.stops) input.type = "range";
    input[spec.stops ? "oninput" : "onchange"] = () => {
      const { stops, options, digits } = controls[spec.name].spec;
      const chosen = (stops || options)[stops ? +input.value : input.selectedIndex];
      if (stops) tell(input, value, chosen, digits);
      change({ [spec.name]: chosen });
    };
    if (spec.digits === 2) played.append(node("option", { value: spec.name }, spec.label));
    return { input, value, why, spec };
  }
  function tell(input, output, value, digits) {
    output.textContent = value.toFixed(digits);
    input.setAttribute("aria-valuetext", value.toFixed(digits));
  }
  function drawControl(spec) {
    const made = (controls[spec.name] ??= build(spec)), { input } = made;
    const unit = spec.name === "stride" ? "stride " : "", words = JSON.stringify(spec.options);
    if (spec.options && words !== made.words)
      input.replaceChildren(...spec.options.map((one) => node("option", {}, `${unit}${one}`)));
    Object.assign(made, { spec, words });
    input.disabled = Boolean(spec.idle);
    made.why.textContent = spec.idle || "";
    if (pending && spec.name in pending) return; // the hand is ahead
    if (spec.options) return void (input.selectedIndex = spec.options.indexOf(spec.value));
    const far = spec.stops.map((stop) => Math.abs(stop - spec.value));
    Object.assign(input, { min: 0, max: spec.stops.length - 1, step: 1 });
    input.value = far.indexOf(Math.min(...far));
    tell(input, made.value, spec.value, spec.digits);
  }
  function toggle() {
    play.textContent = playing ? "play" : "stop";
    playing = playing ? clearInterval(playing) : setInterval(step, TICK);
  }
  function step() {
    const { input } = controls[played.value];
    if (pending || asked || input.disabled) return;
    input.value = +input.value === +input.max ? 0 : +input.value + 1;
    input.oninput();
  }

  // ---- panels
  function makePanel() {
    const photo = node("img", { className: "photo", alt: "" }), layer = node("img", {});
    const frames = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    frames.setAttribute("preserveAspectRatio", "none");
    frames.setAttribute("aria-hidden", "true");
    const marker = node("div", { className: "marker" });
    const window = node("div", { className: "frame" }, photo, layer, frames, marker);
    const caption = node("figcaption"), scale = node("div", { className: "scale" });
    const figure = node("figure", {}, caption, window, scale);
    const made = { figure, caption, photo, layer, frames, marker, window, scale };
    window.onpointermove = (event) => made.spec.palette !== "channels" && point(event, window);
    window.onclick = (event) => {
      const box = window.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
      if (made.spec.palette === "channels")
        change({ channel: Math.min(Math.floor(share * frame.channels), frame.channels - 1) });
    };
    window.onkeydown = (event) => {
      const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      if (!steps[event.key] || made.spec.palette === "channels") return;
      event.preventDefault();
      event.stopPropagation();
      read(cell.row + steps[event.key][0], cell.column + steps[event.key][1]);
    };
    stage.append(figure);
    return made;
  }
  function point(event, window) {
    const box = window.getBoundingClientRect(), [high, wide] = frame.picture.window;
    const row = ((event.clientY - box.top) / box.height) * high * frame.grid[0];
    const column = ((event.clientX - box.left) / box.width) * wide * frame.grid[1];
    const same = Math.floor(row) === cell.row && Math.floor(column) === cell.column;
    if (!same || !reading.textContent) read(Math.floor(row), Math.floor(column));
  }
  function read(row, column) {
    const [rows, columns] = frame.grid, [high, wide] = frame.picture.window;
    const clip = (at, cells) => Math.max(0, Math.min(Math.ceil(cells - 1e-9) - 1, at)); // no padding
    Object.assign(cell, { row: clip(row, high * rows), column: clip(column, wide * columns) });
    const at = cell.row * columns + cell.column, of = (name) => cells[name][at];
    const hidden = of("keep") === 0 ? "hidden" : "visible";
    reading.textContent = `row ${cell.row}, column ${cell.column}: ${hidden} · ` +
      `attention ${of("attention").toFixed(2)} · enhanced ${of("enhanced").toFixed(2)} · ` +
      `rank ${of("rank")} of ${frame.count} · energy ${of("energy").toFixed(2)}`;
    const part = (share) => `${100 * share}%`;
    for (const { marker } of panels)
      Object.assign(marker.style, {
        top: part(cell.row / rows / high), height: part(1 / rows / high),
        left: part(cell.column / columns / wide), width: part(1 / columns / wide),
      });
  }
  function drawPanel(made, spec, buffers) {
    const [high, wide] = spec.window, bars = spec.palette === "channels";
    made.spec = spec;
    made.figure.className = `panel ${spec.palette} ${spec.name.replace(" ", "-")}`;
    made.caption.textContent = spec.caption;
    made.window.style.aspectRatio = `${frame.picture.size[1]} / ${frame.picture.size[0]}`;
    Object.assign(made.layer.style, bars ? { width: "", height: "" }
      : { width: `${100 / wide}%`, height: `${100 / high}%` });
    if (made.photo.src !== picture.url) made.photo.src = picture.url;
    made.photo.hidden = bars;
    made.layer.hidden = spec.at === null;
    const range = spec.limits ? `, from ${spec.limits[0]} to ${spec.limits[1]}` : "";
    const alt = `${spec.caption}${range}${spec.name === "keep" ? `. ${frame.sentence}` : ""}`;
    made.photo.alt = spec.at === null ? `the picture ${controls.image.spec.value}` : "";
    made.layer.alt = alt;
    if (spec.at !== null) show(made.layer, url(buffers[spec.at], "image/png"));
    const [least, most] = spec.limits || [];
    made.scale.replaceChildren(...(spec.limits ? [least, node("i"), most] : []));
    const keys = spec.name === "keep" ? "arrow keys read the cells" : "";
    made.window.tabIndex = keys ? 0 : -1;
    made.window.role = keys ? "group" : null;
    made.window.ariaLabel = keys || null;
    made.window.title = bars ? "click a bar to see its channel" : keys;
    if (spec.name === "picture") made.window.append(legend);
  }
  function drawBoxes(made) {
    const [height, width] = frame.picture.size;
    made.frames.setAttribute("viewBox", `0 0 ${width} ${height}`);
    made.frames.innerHTML = made.spec.palette === "channels" ? "" : frame.picture.boxes.map(
      ([x, y, right, bottom]) => ["rim", "dash"].map((kind) => `<rect class="${kind}" x="${x}" ` +
        `y="${y}" width="${right - x}" height="${bottom - y}"/>`).join("")).join("");
  }
  function drop({ figure, layer }) {
    figure.remove();
    URL.revokeObjectURL(layer.src);
  }
  function draw(buffers) {
    frame.controls.forEach(drawControl);
    if (frame.picture.at !== null) {
      const old = picture.url;
      picture = { key: frame.picture.key, url: url(buffers[frame.picture.at], "image/png") };
      if (old) setTimeout(() => URL.revokeObjectURL(old), PATIENCE);
    }
    cells = Object.fromEntries(Object.entries(frame.cells).map(
      ([name, at]) => [name, floats(buffers[at])]));
    while (panels.length > frame.panels.length) drop(panels.pop());
    while (panels.length < frame.panels.length) panels.push(makePanel());
    frame.panels.forEach((spec, index) => {
      drawPanel(panels[index], spec, buffers);
      drawBoxes(panels[index]);
    });
    byPath.hidden = !frame.paths;
    legend.textContent = frame.picture.boxes.length ? frame.legend : "no boxes are known here";
    error.textContent = frame.error;
    if (!frame.error && opened && path.value.trim() === opened) path.value = opened = "";
    lines.replaceChildren(...frame.lines.map((line) => node("li", {}, line)));
    texts.textContent = `${frame.texts.settings}\n\n${frame.texts.code}`;
    if (reading.textContent) read(cell.row, cell.column);
    sentence.textContent = frame.sentence; // last: who waits for the words sees their picture
  }

  model.on("msg:custom", hear);
  send({ kind: "hello" });
  return () => {
    model.off("msg:custom", hear);
    document.removeEventListener("paste", pasted);
    clearInterval(playing);
    panels.forEach(drop);
    URL.revokeObjectURL(picture.url);
  };
}

// The app's page has no notebook: a WebSocket carries a message and then its buffers, both ways.
function connect(el) {
  const socket = new WebSocket(`${location.origin.replace("http", "ws")}/socket`);
  let message = null, buffers = [];
  socket.binaryType = "arraybuffer";
  const send = (content, _callbacks, files = []) => {
    socket.send(JSON.stringify({ ...content, buffers: files.length }));
    files.forEach((file) => socket.send(file));
  };
  socket.onopen = () => {
    const hear = (_name, heard) => {
      socket.onmessage = ({ data }) => {
        if (typeof data === "string") [message, buffers] = [JSON.parse(data), []];
        else buffers.push(new DataView(data));
        if (buffers.length === message.buffers) heard(message, buffers);
      };
    };
    render({ model: { send, on: hear, off: () => {} }, el });
  };
  socket.onclose = () => el.prepend(node("p", { className: "error", role: "alert" },
    "The laboratory has ended; start `dfmsd lab` again and reload this page."));
}

const app = document.getElementById("mask-lab-app");
if (app) connect(app);

export default { render };
