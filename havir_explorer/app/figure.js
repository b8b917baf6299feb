/* Plotly's bundle is 5 MB and takes seconds to read on a busy machine, while anywidget gives a widget two to initialise and afterwards
   drops what the kernel sends to it. So this small module answers at once and reads the bundle beside it; where even that came too late,
   it asks for another widget. And because plotly keeps no account of edits made before a view exists, each view starts from the figure as
   the kernel holds it. */

export default () => {
  let figure;
  let plotly;
  return {
    initialize({ model }) {
      figure = model;
    },
    async render({ model, el }) {
      el.textContent = "The cortex is being loaded.";
      try {
        plotly ??= load(figure);
        const widget = await plotly;
        await shown(el);
        await fresh(model);
        el.textContent = "";
        const remove = widget.render({ model, el });
        sayNothing(model, el);
        return remove;
      } catch (error) {
        el.textContent = `The cortex could not be drawn (${error.message}); reload the page.`;
      }
    },
  };
};

async function load(model) {
  const address = URL.createObjectURL(new Blob([model.get("bundle")], { type: "text/javascript" }));
  const { default: make } = await import(address);
  URL.revokeObjectURL(address);
  const widget = await make();
  await widget.initialize({ model });
  return widget;
}

/* Until the element has a width: plotly would draw at one of its own and keep it. */
function shown(el) {
  return new Promise((resolve) => {
    const watch = new ResizeObserver(() => {
      if (el.clientWidth > 0) {
        watch.disconnect();
        resolve();
      }
    });
    watch.observe(el);
  });
}

/* Until the kernel has sent the figure as it stands; an answer that does not come is one that anywidget has dropped. */
function fresh(model) {
  return new Promise((resolve) => {
    const late = setTimeout(() => {
      model.off("change:sent", arrived); // an answer that still comes is of a figure about to be closed, and drawn it would speak to no one
      model.send("anew");
    }, 1000 * model.get("patience"));
    const arrived = () => {
      clearTimeout(late);
      model.off("change:sent", arrived);
      resolve();
    };
    model.on("change:sent", arrived);
    model.send("fresh");
  });
}

/* Where a trace has no value (NaN) the pointer is told so in words. plotly has no setting for it, so its number formats, which it makes
   anew with every layout, are taught them; words for every vertex would take longer to send than the map. */
function sayNothing(model, plot) {
  const teach = () => {
    const locale = plot._fullLayout?._d3locale;
    if (!locale || locale.taught) return;
    const { numberFormat } = locale;
    locale.taught = true;
    locale.numberFormat = (pattern) => {
      const say = numberFormat(pattern);
      return (value) => (Number.isNaN(value) ? model.get("without") : say(value));
    };
  };
  teach();
  ["plotly_afterplot", "plotly_restyle", "plotly_relayout", "plotly_update"].forEach((name) => plot.on(name, teach));
}
