// What moves in a report: values under the pointer, and the generator. The page reads without any of it.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const format = (value) => {
    const size = Math.abs(value);
    return (size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(+value.toPrecision(4))).replace("-", "−");
  };

  // ---- charts: the values are read back from the paths
  const tip = byId("tip");
  let hideShown = null; // what hides the values that are shown

  function readChart(svg) {
    const axis = (text) => {
      const [low, high, start, end, log] = text.split(" ").map((word) => (word === "log" ? true : Number(word)));
      return (place) => {
        const share = (place - start) / (end - start);
        return log ? low * (high / low) ** share : low + share * (high - low);
      };
    };
    const curves = [...svg.querySelectorAll("[data-name]:not(.faint)")].map((path) => ({
      name: path.dataset.name,
      points: path.getAttribute("d").split(/[ML]/).slice(1).map((pair) => pair.split(",").map(Number)),
    }));
    return { x: axis(svg.dataset.x), y: axis(svg.dataset.y), curves, label: svg.dataset.label };
  }

  const nearest = (points, place) =>
    points.reduce((best, point) => (Math.abs(point[0] - place) < Math.abs(best[0] - place) ? point : best));

  // Charts beside one another that are small share one stop of the Tab key: the one that was looked at last.
  const group = (svg) => [...(svg.closest(".charts.small")?.querySelectorAll(".plot") ?? [svg])];
  const stopAt = (svg) => group(svg).forEach((one) => { one.tabIndex = one === svg ? 0 : -1; });

  function setUpChart(svg) {
    let chart, cursor, place;
    const bounds = svg.viewBox.baseVal;
    const hide = () => {
      cursor?.remove();
      cursor = null;
      if (hideShown === hide) tip.hidden = true;
    };
    const show = (wanted) => {
      chart ??= readChart(svg);
      if (!chart.curves.length) return;
      place = nearest(chart.curves[0].points, wanted)[0];
      if (hideShown !== hide) hideShown?.();
      hideShown = hide;
      if (!cursor) {
        cursor = svg.querySelector(".axis").cloneNode(); // of SVG's own kind, without naming its address
        cursor.setAttribute("class", "cursor");
        svg.append(cursor);
      }
      cursor.setAttribute("d", `M${place},${svg.dataset.y.split(" ")[2]}V${svg.dataset.y.split(" ")[3]}`);
      const lines = chart.curves.map(({ name, points }) => `${name}  ${format(chart.y(nearest(points, place)[1]))}`);
      tip.textContent = [`${chart.label || "at"}  ${format(chart.x(place))}`, ...lines].join("\n");
      tip.hidden = false;
      const box = svg.getBoundingClientRect(), at = box.left + (place / bounds.width) * box.width;
      const left = at + 14 + tip.offsetWidth > innerWidth ? at - 14 - tip.offsetWidth : at + 14;
      tip.style.left = `${Math.max(4, left)}px`;
      tip.style.top = `${Math.max(4, box.top - 6)}px`;
    };
    const follow = (event) => {
      const box = svg.getBoundingClientRect();
      show(((event.clientX - box.left) / box.width) * bounds.width);
    };
    svg.addEventListener("pointermove", follow);
    svg.addEventListener("pointerdown", follow);
    svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide()); // a finger only lifts
    svg.addEventListener("blur", hide);
    svg.addEventListener("focus", () => stopAt(svg));
    svg.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      const charts = group(svg), other = charts[charts.indexOf(svg) + by];
      if (step || other) event.preventDefault();
      other?.focus();
      if (!step) return;
      chart ??= readChart(svg);
      if (!chart.curves.length) return;
      const places = [...new Set(chart.curves[0].points.map(([x]) => x))]; // a lone point is there twice
      const now = place === undefined ? -step : places.indexOf(place);
      show(places[Math.min(places.length - 1, Math.max(0, now + step))]);
    });
  }
  document.querySelectorAll("svg.plot").forEach((svg) => { setUpChart(svg); stopAt(group(svg)[0]); });

  // ---- the generator; its state is `window.lvkam`: coordinate, u, z and data (as `model.decode` gives them)
  if (!byId("coordinate")) return;
  const page = JSON.parse(byId("data").textContent);
  const quantile = makeQuantile(page.quantiles), density = decodeArray(page.quantiles.density);
  const generate = page.generator ? makeGenerator(page.generator) : null;
  const frames = page.frames && { ...page.frames, values: decodeArray(page.frames.values) };
  const { low, high, levels } = page.quantiles;
  const state = (window.lvkam = { coordinate: null, u: null, z: Float64Array.from(page.start), data: null });
  const chooser = byId("coordinate"), slider = byId("slider"), reading = byId("reading");

  function rank(q, z) { // the reverse of `quantile`
    let a = low, b = high;
    for (let n = 0; n < 40; n++) if (quantile(q, (a + b) / 2) < z) a = (a + b) / 2; else b = (a + b) / 2;
    return (a + b) / 2;
  }

  function decoded() {
    if (generate) return generate(state.z);
    const D = page.shape.reduce((a, b) => a * b), at = frames.coordinates.indexOf(state.coordinate);
    const frame = Math.round(((state.u - low) / (high - low)) * (frames.levels - 1));
    const first = (at * frames.levels + frame) * D;
    return Float64Array.from(frames.values.subarray(first, first + D), (v) => v * frames.scale);
  }

  function paintImage(data) {
    const canvas = byId("image"), channels = page.shape[2] || 1;
    const pixels = new ImageData(canvas.width, canvas.height);
    for (let p = 0; p < canvas.width * canvas.height; p++) {
      for (let c = 0; c < 3; c++) pixels.data[4 * p + c] = Math.round(255 * data[p * channels + (channels > 1 ? c : 0)]);
      pixels.data[4 * p + 3] = 255;
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  function paintColumns(data) {
    const rows = page.columns.map((name, d) => {
      const row = document.createElement("tr"), bar = document.createElement("i");
      for (const text of [name, format(data[d] * page.std[d] + page.mean[d])]) {
        row.append(Object.assign(document.createElement("td"), { textContent: text }));
      }
      const share = Math.min(1, Math.abs(data[d]) / 4) * 50; // four standard deviations to either side of the mean
      bar.style.cssText = `width:${share}%;margin-left:${data[d] < 0 ? 50 - share : 50}%`;
      const cell = document.createElement("td");
      cell.append(bar);
      row.append(cell);
      return row;
    });
    byId("columns").replaceChildren(...rows);
  }

  function paintDensity() {
    const row = state.coordinate * levels, z = quantile.table.subarray(row, row + levels);
    const height = density.subarray(row, row + levels), most = Math.max(...height), ends = [z[0], z[levels - 1]];
    const span = ends[1] - ends[0] || 1;
    Object.assign(slider, { min: ends[0], max: ends[1], step: span / 1000, value: state.z[state.coordinate] });
    document.querySelectorAll(".ends span").forEach((end, n) => { end.textContent = format(ends[n]); });
    const x = (value) => ((value - z[0]) / span) * 400;
    const top = Array.from(z, (value, l) => `${x(value).toFixed(1)},${(68 - 64 * (height[l] / most)).toFixed(1)}`).join("L");
    const [area, line, cursor] = byId("density").children;
    line.setAttribute("d", `M${top}`);
    area.setAttribute("d", `M0,70L${top}L400,70Z`);
    cursor.setAttribute("d", `M${Math.min(400, Math.max(0, x(state.z[state.coordinate])))},0V70`);
  }

  function update() {
    const q = state.coordinate;
    state.data = decoded();
    (page.columns ? paintColumns : paintImage)(state.data);
    paintDensity();
    const words = `${chooser.selectedOptions[0].text.split(" ")[0]} = ${format(state.z[q])}, percentile ${(100 * state.u).toFixed(1)}`;
    reading.textContent = words;
    slider.setAttribute("aria-valuetext", words);
  }

  const frameStep = frames ? (high - low) / (frames.levels - 1) : 0;
  function move(u) {
    state.u = frames ? low + Math.round((Math.min(high, Math.max(low, u)) - low) / frameStep) * frameStep : u;
    state.z[state.coordinate] = quantile(state.coordinate, state.u);
    update();
  }

  function choose(q) {
    if (frames) state.z = Float64Array.from(page.start);
    state.coordinate = q;
    chooser.value = q;
    state.u = rank(q, state.z[q]);
    if (frames) move(state.u); else update();
  }

  const step = (by) => {
    const count = chooser.options.length;
    choose(Number(chooser.options[(chooser.selectedIndex + by + count) % count].value));
  };
  chooser.addEventListener("change", () => choose(Number(chooser.value)));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  slider.addEventListener("input", () => move(rank(state.coordinate, Number(slider.value))));
  slider.addEventListener("keydown", (event) => { // from frame to frame: a step of the slider is less
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!frames || !by) return;
    event.preventDefault();
    move(state.u + by * frameStep);
  });
  byId("restart").addEventListener("click", () => { state.z = Float64Array.from(page.start); choose(state.coordinate); });
  byId("draw").hidden = Boolean(frames);
  byId("draw").addEventListener("click", () => {
    state.z = state.z.map((_, q) => quantile(q, low + Math.random() * (high - low)));
    choose(state.coordinate);
  });
  document.querySelector(".try").hidden = false;
  choose(Number(chooser.value));
})();
