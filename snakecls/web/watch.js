// Says in the answer's place, without the server, that a photo is on its way, did not arrive, or gets no answer;
// the old answer is hidden. `texts`: the messages as HTML; `wait_ms`: for an answer; `upload_bytes`: of a photo, at most.
({texts, wait_ms, upload_bytes}) => {
  const lostKey = "snakecls-lost";
  let timer = null, sending = 0, before = "";
  const said = () => document.querySelector("#result > .sc-said");
  const answered = () =>
    [...document.querySelectorAll("#result .sc-message, #result .sc-answer")].filter(one => !one.closest(".sc-said"));
  const text = () => answered().map(one => one.textContent).join();
  const waiting = () =>
    said() ? !!said().querySelector(".sc-waiting") : answered().some(one => one.matches(".sc-waiting"));
  const unsay = () => said()?.remove();
  const say = (html, reason) => {
    unsay();
    before = text();
    const place = document.createElement("div");
    place.className = "sc-said";
    place.innerHTML = html;
    if (reason) place.querySelector("p").textContent = reason + " Nothing is known about the photo.";
    document.querySelector("#result")?.append(place);
  };
  const await_answer = () => {  // for so long, and then it is said
    clearTimeout(timer);
    timer = setTimeout(() => { if (!sending && waiting()) say(texts.no_answer); }, wait_ms);
  };
  const chosen = files => {
    if (!files?.length) return;
    if ([...files].some(file => file.size > upload_bytes)) {
      const most = Math.floor(upload_bytes / 1e6);
      return say(texts.not_sent, `It is larger than ${most} MB; send a smaller copy of it.`);
    }
    say(texts.sent);
    await_answer();
    const started = sending;
    setTimeout(() => {
      const silent = sending === started && !sending && said()?.querySelector(".sc-waiting") && text() === before;
      if (silent) say(texts.not_sent, "It could not be sent; is it a photo?");
    }, 5000);
  };
  let fresh = null;  // what is typed takes the place of the country that is there
  document.addEventListener("focusin", event => {
    if (event.target.closest?.("#country") && event.target.select) (fresh = event.target).select();
  });
  document.addEventListener("mouseup", event => {  // which would put the cursor into it
    if (fresh && event.target === fresh) { event.preventDefault(); fresh.select(); }
    fresh = null;
  });
  document.addEventListener("change", event => {
    if (event.target.type === "file" && event.target.closest("#photo, #more")) chosen(event.target.files);
  }, true);
  document.addEventListener("drop", event => {
    if (event.target.closest?.("#photo, #more")) chosen(event.dataTransfer?.files);
  }, true);
  const read_aloud = () => {  // whoever does not see the page hears the answer
    const place = document.querySelector("#result");
    if (place && !place.hasAttribute("aria-live")) place.setAttribute("aria-live", "polite");
  };
  const lost = () => { if (waiting() && !said()?.querySelector(".sc-error")) say(texts.no_answer); };
  window.addEventListener("offline", lost);
  const ask = window.fetch;
  window.fetch = async (...given) => {
    const path = new URL(given[0]?.url ?? given[0], location.href).pathname;
    if (path.endsWith("/gradio_api/app_id")) {  // Gradio has lost the server, and loads the page anew when it is back
      lost();
      sessionStorage.setItem(lostKey, "1");
    }
    if (!path.endsWith("/gradio_api/upload")) return ask(...given);
    sending += 1;
    say(texts.sent);
    try {
      const answer = await ask(...given);
      if (answer.ok) await_answer();
      else say(texts.not_sent, await answer.clone().json().then(one => one.detail, () => ""));
      return answer;
    } catch (error) {
      say(texts.not_sent);
      throw error;
    } finally {
      sending -= 1;
    }
  };
  new MutationObserver(() => {  // the answer of the server takes its place
    read_aloud();
    // Gradio lets go of what did not arrive
    const emptied = said()?.querySelector(".sc-error") && answered().some(one => one.matches(".sc-hint"));
    if (said() && text() !== before && !emptied) unsay();
    if (!said() && waiting() && text() !== before) await_answer();
    before = text();
  }).observe(document.body, {childList: true, subtree: true, characterData: true});
  const tell_lost = () => {
    if (!sessionStorage.getItem(lostKey)) return;
    if (!answered().length) return setTimeout(tell_lost, 50);  // the page does not show anything yet
    sessionStorage.removeItem(lostKey);
    say(texts.no_answer);
  };
  tell_lost();
}
