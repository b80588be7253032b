// The keys of the review page press its buttons, so that a key does what a click does; they rest while a label is typed.
() => {
  const ask = window.fetch;
  window.fetch = (...given) => {  // Gradio has lost the server, and loads the page anew when it is back
    if (String(given[0]?.url ?? given[0]).endsWith("/gradio_api/app_id")) document.body.classList.add("sc-lost");
    return ask(...given);
  };
  const buttons = {
    Enter: "#actions .suggested", k: "#keep", r: "#relabel", d: "#drop", l: "#label",
    b: "#back", ArrowLeft: "#back", s: "#skip", ArrowRight: "#skip", u: "#undo",
  };
  const choose = () => document.querySelector("#label input")?.focus();
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.closest("input, textarea, [role=listbox]")) {
      if (event.key === "Escape") document.activeElement.blur();
      return;
    }
    if (event.key === "Enter" && event.target.closest("button, a")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const button = document.querySelector(buttons[key] || "#none");
    if (!button || document.body.matches(".sc-lost")) return;
    event.preventDefault();
    if (button.id === "label" || (button.id === "relabel" && button.disabled)) choose(); else button.click();
  });
  document.addEventListener("focusin", event => {  // so that what is typed takes the label's place
    if (event.target.matches("#label input")) setTimeout(() => event.target.select());
  });
  document.addEventListener("click", event => {  // the next Enter is for the next photo's suggestion, not for this button again
    const button = event.target.closest("#actions button, #moves button");
    if (button) setTimeout(() => button.blur());
  });
}
