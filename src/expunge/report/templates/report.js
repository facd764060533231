// Draws the charts from the data that the page carries. Colors are CSS variables, so dark mode and print need no redraw.
const { config, specs } = JSON.parse(document.getElementById("chart-data").textContent);

function fitted(spec, width) {
  if (!spec.facet) return spec;
  const columns = width < 560 ? 1 : width < 820 ? Math.min(2, spec.columns) : spec.columns;
  const panel = Math.max(180, Math.floor((width - 62 - 34 * (columns - 1)) / columns));
  return { ...spec, columns, spec: { ...spec.spec, width: panel } };
}

async function draw(figure) {
  const place = figure.querySelector(".chart");
  const width = place.clientWidth;
  figure.dataset.width = width;
  const legend = { ...config.legend, columns: Math.max(1, Math.floor(width / 160)) };
  const { view } = await vegaEmbed(place, fitted(specs[figure.id], width), {
    config: { ...config, legend },
    renderer: "svg",
    actions: false,
    ast: true, // the page forbids code made from strings
    tooltip: { theme: "custom" },
  });
  figure.querySelector("button").onclick = async () => save(await view.toSVG(), figure.id);
}

function save(svg, name) {
  const style = getComputedStyle(document.documentElement);
  const resolved = svg.replace(/var\((--[\w-]+)\)/g, (_, variable) => style.getPropertyValue(variable).trim());
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([resolved], { type: "image/svg+xml" }));
  link.download = `${name}.svg`;
  link.click();
  URL.revokeObjectURL(link.href);
}

document.documentElement.classList.add("drawn");
const figures = [...document.querySelectorAll("figure[id]")];
for (const figure of figures) {
  // What is folded has no width yet, and may never be looked at.
  const folded = figure.closest("details:not([open])");
  if (folded) folded.addEventListener("toggle", () => draw(figure), { once: true });
  else await draw(figure);
}
document.documentElement.dataset.ready = "yes";

let waiting;
addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    for (const figure of figures) {
      const width = figure.querySelector(".chart").clientWidth;
      if (width && figure.dataset.width && Math.abs(width - figure.dataset.width) > 24) draw(figure);
    }
  }, 150);
});
