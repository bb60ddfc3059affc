"""The report's HTML: one file, no links; `$name` is filled in by `report`."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>$title: cells</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 24px auto; max-width: 1320px; padding: 0 16px;
  color: #1b1f24; }
h1 { font-size: 22px; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 28px 0 8px; }
p { margin: 2px 0; }
table { border-collapse: collapse; margin: 14px 0; }
th, td { padding: 4px 14px 4px 0; text-align: right; border-bottom: 1px solid #d8dee4; }
th:first-child, td:first-child { text-align: left; }
#view { position: relative; border: 1px solid #d8dee4; height: 640px; overflow: hidden; touch-action: none; }
canvas { width: 100%; height: 100%; display: block; cursor: grab; background: #fff; }
#controls { display: flex; flex-wrap: wrap; gap: 6px 18px; align-items: center; margin: 6px 0; }
.mark { display: inline-block; width: 11px; height: 11px; border-radius: 50%; border: 1px solid #101010; }
#scale { position: absolute; left: 12px; bottom: 10px; border: 2px solid #101010; border-top: 0; padding: 0 4px;
  font-size: 12px; text-align: center; background: rgba(255, 255, 255, .75); box-sizing: border-box; }
img { max-width: 100%; }
</style>
</head>
<body>
<h1>$title</h1>
$facts
$table
<h2>Slide</h2>
<div id="controls"></div>
<div id="view"><canvas></canvas><div id="scale"></div></div>
<p>Wheel or pinch: zoom. Drag: move. Double click: all of it. $sampled</p>
<h2>Density</h2>
<img src="$density" alt="cell density per class">
$regions
<script type="application/json" id="data">$data</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const places = new Uint16Array(bytes(data.places).buffer);
const labels = bytes(data.labels);
const canvas = document.querySelector("canvas"), pen = canvas.getContext("2d");
const shown = data.classes.map(() => true);
const picture = new Image();
let zoom = 1, left = 0, top_ = 0, size = 1, waiting = false;

function fit() {
  zoom = Math.min(canvas.width / data.width, canvas.height / data.height);
  left = (canvas.width - data.width * zoom) / 2;
  top_ = (canvas.height - data.height * zoom) / 2;
}
function draw() {
  waiting = false;
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(picture, left, top_, data.width * zoom, data.height * zoom);
  const radius = Math.max(1, Math.min(9, 4 / data.umPerPx * zoom)) * size;
  const stepX = data.width * zoom / 65535, stepY = data.height * zoom / 65535;
  let drawn = 0;
  data.classes.forEach((kind, label) => {
    if (!shown[label]) return;
    pen.beginPath();
    for (let i = 0; i < labels.length; i++) {
      if (labels[i] !== label) continue;
      const x = left + places[2 * i] * stepX, y = top_ + places[2 * i + 1] * stepY;
      if (x < -9 || y < -9 || x > canvas.width + 9 || y > canvas.height + 9) continue;
      drawn++;
      if (radius < 2.5) pen.rect(x - radius, y - radius, 2 * radius, 2 * radius);
      else { pen.moveTo(x + radius, y); pen.arc(x, y, radius, 0, 6.2832); }
    }
    pen.fillStyle = pen.strokeStyle = `rgb($${kind.colour})`;
    if (radius < 2.5) return pen.fill();
    pen.lineWidth = 4; pen.strokeStyle = "#101010"; pen.stroke();
    pen.lineWidth = 2; pen.strokeStyle = pen.fillStyle; pen.stroke();
  });
  canvas.dataset.drawn = drawn;
  ruler();
}
function ruler() {
  const perPx = data.umPerPx / zoom * canvas.width / canvas.clientWidth, most = 160 * perPx;
  const power = 10 ** Math.floor(Math.log10(most));
  const um = [5, 2, 1].map((n) => n * power).find((n) => n <= most);
  const bar = document.getElementById("scale");
  bar.style.width = `$${um / perPx}px`;
  bar.textContent = um >= 1000 ? `$${um / 1000} mm` : `$${um} µm`;
}
function soon() { if (!waiting) { waiting = true; requestAnimationFrame(draw); } }
function zoomAt(x, y, factor) {
  const next = Math.max(0.02, Math.min(60, zoom * factor));
  left = x - (x - left) * next / zoom;
  top_ = y - (y - top_) * next / zoom;
  zoom = next;
  soon();
}
function resize() {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  fit();
  soon();
}
const at = (event) => {
  const box = canvas.getBoundingClientRect(), ratio = canvas.width / box.width;
  return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
};
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoomAt(...at(event), Math.exp(-event.deltaY * 0.0015));
}, { passive: false });
const fingers = new Map();
canvas.addEventListener("pointerdown", (event) => {
  fingers.set(event.pointerId, at(event));
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (!fingers.has(event.pointerId)) return;
  const before = fingers.get(event.pointerId), now = at(event);
  const other = [...fingers].find(([id]) => id !== event.pointerId);
  if (other) {
    const apart = (point) => Math.hypot(point[0] - other[1][0], point[1] - other[1][1]) || 1;
    zoomAt(...other[1], apart(now) / apart(before));
  } else { left += now[0] - before[0]; top_ += now[1] - before[1]; soon(); }
  fingers.set(event.pointerId, now);
});
for (const name of ["pointerup", "pointercancel"])
  canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
canvas.addEventListener("dblclick", () => { fit(); soon(); });
const controls = document.getElementById("controls");
data.classes.forEach((kind, label) => {
  const line = document.createElement("label"), box = document.createElement("input");
  const mark = document.createElement("span");
  box.type = "checkbox"; box.checked = true;
  box.onchange = () => { shown[label] = box.checked; soon(); };
  mark.className = "mark"; mark.style.background = `rgb($${kind.colour})`;
  line.append(box, " ", mark, " ", kind.name);
  controls.append(line);
});
const slider = document.createElement("input"), text = document.createElement("label");
Object.assign(slider, { type: "range", min: 0.3, max: 3, step: 0.1, value: 1 });
slider.oninput = () => { size = Number(slider.value); soon(); };
text.append("size ", slider);
controls.append(text);
window.addEventListener("resize", resize);
picture.onload = () => { resize(); draw(); };
picture.src = "$picture";
</script>
</body>
</html>
"""
