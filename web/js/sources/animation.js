/** The built-in input: a bay at noon with hills, clouds and a boat, so that something moves at once. */

const TAU = 2 * Math.PI;

/** @type {import("./source.js").Kind} */
export const animation = {
  id: "animation",
  mode: "image",
  available: () => true,
  open: async () => ({ draw: drawAnimation, close() {} }),
};

/**
 * @param {CanvasRenderingContext2D} context
 * @param {number} now milliseconds
 */
export function drawAnimation(context, now) {
  const { width, height } = context.canvas;
  context.save();
  // The scene is drawn in a square of 1×1 that covers the canvas.
  const size = Math.max(width, height);
  context.translate((width - size) / 2, (height - size) / 2);
  context.scale(size, size);
  drawScene(context, now / 1000);
  context.restore();
  return true;
}

/** @param {CanvasRenderingContext2D} c @param {number} time seconds */
function drawScene(c, time) {
  fill(c, 0, 0.62, ["#3f8fd2", "#8fc4ea", "#f6e3c0"]);
  drawSun(c, 0.5 + 0.3 * Math.sin(time / 9), 0.2 + 0.05 * Math.cos(time / 7));
  drawCloud(c, drift(time, 60, 0.1), 0.16, 0.9);
  drawCloud(c, drift(time, 42, 0.65), 0.3, 0.65);
  drawRidge(c, "#8aa2b8", 0.48, 0.13, 2.1, 0.4, time / 90);
  drawRidge(c, "#5d7f74", 0.56, 0.09, 3.3, 2.2, time / 60);
  fill(c, 0.6, 1, ["#5fa9c9", "#1d6a96", "#0f4a74"]);
  drawGlitter(c, time);
  drawBoat(c, drift(time, 36, 0.3), 0.7 + 0.008 * Math.sin(time * 1.6), 0.05 * Math.sin(time * 1.3));
  drawWaves(c, time);
  drawShore(c);
  drawTree(c, 0.13, 0.93, 0.04 * Math.sin(time * 0.9));
}

/** From -0.3 to 1.3 and again, in `period` seconds. */
function drift(time, period, start) {
  return ((time / period + start) % 1) * 1.6 - 0.3;
}

/** A band across the scene, in colours from top to bottom. */
function fill(c, top, bottom, colours) {
  const gradient = c.createLinearGradient(0, top, 0, bottom);
  colours.forEach((colour, i) => gradient.addColorStop(i / (colours.length - 1), colour));
  c.fillStyle = gradient;
  c.fillRect(0, top, 1, bottom - top);
}

function disc(c, x, y, radius, colour) {
  c.fillStyle = colour;
  c.beginPath();
  c.arc(x, y, radius, 0, TAU);
  c.fill();
}

function drawSun(c, x, y) {
  const glow = c.createRadialGradient(x, y, 0.04, x, y, 0.22);
  glow.addColorStop(0, "rgb(255 244 200 / 85%)");
  glow.addColorStop(1, "rgb(255 244 200 / 0%)");
  disc(c, x, y, 0.22, glow);
  disc(c, x, y, 0.065, "#fff3c4");
}

function drawCloud(c, x, y, scale) {
  for (const [dx, dy, radius] of [[-0.1, 0.01, 0.045], [-0.04, -0.02, 0.065], [0.04, -0.01, 0.055], [0.1, 0.015, 0.04]]) {
    disc(c, x + dx * scale, y + dy * scale, radius * scale, "#fdfdfb");
  }
  c.fillRect(x - 0.1 * scale, y, 0.2 * scale, 0.05 * scale);
}

/** Hills: a sum of sines above `base`. */
function drawRidge(c, colour, base, height, frequency, phase, shift) {
  c.fillStyle = colour;
  c.beginPath();
  c.moveTo(0, 0.62);
  for (let x = 0; x <= 1.001; x += 0.02) {
    const u = (x + shift) * frequency;
    c.lineTo(x, base - height * (0.5 + 0.35 * Math.sin(TAU * u * 0.5 + phase) + 0.15 * Math.sin(TAU * u * 1.3)));
  }
  c.lineTo(1, 0.62);
  c.fill();
}

function drawGlitter(c, time) {
  c.fillStyle = "rgb(255 250 225 / 55%)";
  for (let i = 0; i < 26; i++) {
    const y = 0.615 + 0.011 * i;
    const x = 0.5 + 0.3 * Math.sin(time / 9) + 0.09 * Math.sin(i * 12.9 + time * (0.6 + (i % 5) / 5));
    c.fillRect(x - 0.02, y, 0.02 + 0.02 * Math.abs(Math.sin(time + i)), 0.004);
  }
}

function drawBoat(c, x, y, tilt) {
  c.save();
  c.translate(x, y);
  c.rotate(tilt);
  polygon(c, "#7a3b1f", [-0.1, 0, 0.11, 0, 0.075, 0.045, -0.075, 0.045]);
  polygon(c, "#3a2416", [-0.004, 0, 0.004, 0, 0.004, -0.23, -0.004, -0.23]);
  polygon(c, "#f7f2e6", [0.012, -0.225, 0.1, -0.02, 0.012, -0.02]);
  polygon(c, "#d9483b", [-0.012, -0.2, -0.085, -0.02, -0.012, -0.02]);
  c.restore();
}

function polygon(c, colour, points) {
  c.fillStyle = colour;
  c.beginPath();
  for (let i = 0; i < points.length; i += 2) c.lineTo(points[i], points[i + 1]);
  c.fill();
}

function drawWaves(c, time) {
  c.strokeStyle = "rgb(225 243 250 / 60%)";
  c.lineWidth = 0.006;
  c.lineCap = "round";
  for (let row = 0; row < 4; row++) {
    const y = 0.77 + 0.05 * row;
    c.beginPath();
    for (let i = -1; i < 6; i++) {
      const x = i / 5 + ((time * (0.03 + 0.01 * row)) % 0.2) + 0.1 * (row % 2);
      c.moveTo(x - 0.04, y);
      c.quadraticCurveTo(x, y - 0.02 - 0.006 * Math.sin(time * 2 + row), x + 0.04, y);
    }
    c.stroke();
  }
}

function drawShore(c) {
  c.fillStyle = "#d9bd84";
  c.beginPath();
  c.moveTo(0, 0.86);
  c.quadraticCurveTo(0.28, 0.88, 0.5, 1);
  c.lineTo(0, 1);
  c.fill();
}

function drawTree(c, x, y, sway) {
  c.save();
  c.translate(x, y);
  polygon(c, "#5b3a20", [-0.018, 0, 0.018, 0, 0.012, -0.2, -0.012, -0.2]);
  c.rotate(sway);
  for (const [dx, dy, radius, colour] of [[-0.06, -0.22, 0.085, "#2f6b3a"], [0.06, -0.23, 0.085, "#2f6b3a"], [0, -0.31, 0.1, "#3f8248"]]) {
    disc(c, dx, dy, radius, colour);
  }
  c.restore();
}
