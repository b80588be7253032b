// Gives a photo that browsers do not know (HEIC, TIFF …) the type that its name says, so that Gradio takes it,
// and puts the JPEG of what was read into its place.
() => {
  const name = /\.(heic|heif|hif|avif|mpo|jfif|tiff?|jp2|ppm|pgm)$/i;
  const is_untyped = file => !file.type && name.test(file.name);
  const untyped = files => [...files || []].some(is_untyped);
  const with_type = file => new File([file], file.name, {type: "image/" + file.name.match(name)[1].toLowerCase()});
  const typed = files => {
    const given = new DataTransfer();
    for (const file of files) given.items.add(is_untyped(file) ? with_type(file) : file);
    return given;
  };
  document.addEventListener("change", event => {
    if (event.target.type !== "file" || !untyped(event.target.files)) return;
    event.stopImmediatePropagation();
    event.target.files = typed(event.target.files).files;
    event.target.dispatchEvent(new Event("change", {bubbles: true}));
  }, true);
  document.addEventListener("drop", event => {
    if (!event.dataTransfer || !untyped(event.dataTransfer.files)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const dataTransfer = typed(event.dataTransfer.files);
    event.target.dispatchEvent(new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer}));
  }, true);
  new MutationObserver(() => {  // what was read takes the place of what the browser cannot show
    const preview = document.querySelector("#result .sc-preview"), image = document.querySelector("#photo img");
    if (!preview || !image || preview.hidden) return;
    image.src = preview.src;
    preview.hidden = true;
  }).observe(document.body, {childList: true, subtree: true});
}
