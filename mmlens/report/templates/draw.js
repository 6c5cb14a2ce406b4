"use strict";

// Two pictures side by side become one above the other.
function stack(layout, node) {
  layout.xaxis.domain = layout.xaxis2.domain = [0, 1];
  layout.yaxis.domain = [0.52, 1];
  layout.yaxis2.domain = [0, 0.48];
  layout.height = Math.round(layout.height * 1.35);
  node.style.height = `${layout.height}px`;
}

for (const node of document.querySelectorAll(".plot")) {
  const spec = JSON.parse(document.getElementById(node.id + "-data").textContent);
  const small = node.clientWidth < 480;
  if (small) {
    spec.layout.font = { size: 11 };
    spec.layout.margin = Object.assign({}, spec.layout.margin, { l: 8, r: 4 });
    if (spec.layout.xaxis2) stack(spec.layout, node);
    for (const slider of spec.layout.sliders || []) slider.pad = { t: 12, l: 28, r: 28 };
  }
  Plotly.newPlot(node, spec.data, spec.layout, {
    responsive: true,
    displaylogo: false,
    displayModeBar: small ? false : "hover",
    toImageButtonOptions: { format: "svg", filename: node.id },
  });
}
