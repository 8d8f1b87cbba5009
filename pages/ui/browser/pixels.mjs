// Turns the content of a canvas into the model input.

const INK = 32; // A gray level above this counts as ink; below it is the soft edge of a stroke.

/** Gray levels of RGBA pixels, by the weights that Pillow uses for mode L. */
export function grey(rgba) {
  const levels = new Uint8ClampedArray(rgba.length / 4);
  for (let i = 0; i < levels.length; i += 1) {
    levels[i] = (rgba[4 * i] * 299 + rgba[4 * i + 1] * 587 + rgba[4 * i + 2] * 114) / 1000;
  }
  return levels;
}

/** RGB without the alpha. */
export function rgb(rgba) {
  const colours = new Uint8ClampedArray((rgba.length / 4) * 3);
  for (let i = 0, j = 0; i < rgba.length; i += 4) {
    colours[j++] = rgba[i];
    colours[j++] = rgba[i + 1];
    colours[j++] = rgba[i + 2];
  }
  return colours;
}

/**
 * The part of the canvas to use: all of it, or, centered as in digit datasets, the ink with a margin. MNIST fits a
 * digit into 20 of 28 pixels and puts its center of mass in the middle; tiny images such as 8 x 8 leave no margin.
 * The part may reach beyond the canvas.
 */
export function frame(levels, width, height, [rows, columns], centred) {
  const whole = { x: 0, y: 0, width, height };
  if (!centred) return whole;
  let left = width, right = -1, top = height, bottom = -1, sum = 0, sumX = 0, sumY = 0;
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const level = levels[y * width + x];
      if (level <= INK) continue;
      left = Math.min(left, x); right = Math.max(right, x);
      top = Math.min(top, y); bottom = Math.max(bottom, y);
      sum += level; sumX += level * x; sumY += level * y;
    }
  }
  if (right < 0) return whole;
  const inkWidth = right - left + 1, inkHeight = bottom - top + 1;
  const margin = Math.min(rows, columns) >= 16 ? 4 / 28 : 0;
  const scale = (1 - 2 * margin) / Math.max(inkWidth / columns, inkHeight / rows);
  const part = { width: columns / scale, height: rows / scale };
  const middle = (from, to, mass, size, ink) => {
    const centre = margin ? mass / sum + 0.5 : (from + to + 1) / 2;
    const slack = (size - ink) / 2; // Never push ink over the edge to centre its mass.
    return Math.min((from + to + 1) / 2 + slack, Math.max((from + to + 1) / 2 - slack, centre));
  };
  part.x = middle(left, right, sumX, part.width, inkWidth) - part.width / 2;
  part.y = middle(top, bottom, sumY, part.height, inkHeight) - part.height / 2;
  return part;
}

/** The mean over each target pixel's area: what an antialiased resize does, and the same in every browser. */
export function shrink(values, width, height, channels, part, [rows, columns]) {
  const small = new Uint8Array(rows * columns * channels);
  const stepX = part.width / columns, stepY = part.height / rows;
  const sums = new Float64Array(channels);
  for (let row = 0; row < rows; row += 1) {
    const y0 = part.y + row * stepY, y1 = y0 + stepY;
    for (let column = 0; column < columns; column += 1) {
      const x0 = part.x + column * stepX, x1 = x0 + stepX;
      sums.fill(0);
      for (let y = Math.max(0, Math.floor(y0)); y < Math.min(height, y1); y += 1) {
        const coverY = Math.min(y + 1, y1) - Math.max(y, y0);
        for (let x = Math.max(0, Math.floor(x0)); x < Math.min(width, x1); x += 1) {
          const cover = coverY * (Math.min(x + 1, x1) - Math.max(x, x0));
          for (let c = 0; c < channels; c += 1) sums[c] += cover * values[(y * width + x) * channels + c];
        }
      }
      for (let c = 0; c < channels; c += 1) small[(row * columns + column) * channels + c] = Math.round(sums[c] / (stepX * stepY));
    }
  }
  return small;
}

/** Show a small picture of 1 or 3 channels on a canvas of its own size; CSS makes it large. */
export function show(canvas, small, channels, [rows, columns]) {
  canvas.width = columns;
  canvas.height = rows;
  const picture = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i += 1) {
    for (let c = 0; c < 3; c += 1) picture.data[4 * i + c] = small[i * channels + (channels === 3 ? c : 0)];
    picture.data[4 * i + 3] = 255;
  }
  canvas.getContext('2d').putImageData(picture, 0, 0);
}

/** True if the outermost pixels are bright on the whole, as on a photo of ink on paper. */
export function brightBorder(levels, width, height) {
  let sum = 0, many = 0;
  for (let x = 0; x < width; x += 1) { sum += levels[x] + levels[(height - 1) * width + x]; many += 2; }
  for (let y = 0; y < height; y += 1) { sum += levels[y * width] + levels[y * width + width - 1]; many += 2; }
  return sum / many > 127;
}
