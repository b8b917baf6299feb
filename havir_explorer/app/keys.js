/* Enter in one of the app's fields reconstructs and Escape anywhere in the app cancels; keys pressed outside the app are left alone.
   Listening comes first (capture), because the fields keep their keys to themselves. Nothing here waits for the kernel, so that the keys
   also work where anywidget was too late for the widget and drops what the kernel sends. */

const FIELDS = "input, .widget-readout";

export default {
  initialize({ model }) {
    const pressed = (event) => {
      const { target, key } = event;
      if (event.repeat || event.isComposing || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
      if (!target.closest?.(`.${model.get("scope")}`)) return;
      if (key === "Enter" && target.matches(FIELDS)) {
        setTimeout(() => { // after the field's own handling, so that its value is sent first
          target.dispatchEvent(new Event("change", { bubbles: true }));
          model.send("run");
        });
      } else if (key === "Escape" && !target.matches("select")) {
        model.send("cancel");
      }
    };
    document.addEventListener("keydown", pressed, true);
    return () => document.removeEventListener("keydown", pressed, true);
  },
};
