// The same page again every two seconds; nothing is asked while nobody looks.
const main = document.querySelector("main");
let last = main.innerHTML;

async function renew() {
  if (document.hidden || String(getSelection())) return; // a selection would be lost
  try {
    const answer = await fetch(location.href, { headers: { "X-Part": "main" } });
    const text = await answer.text();
    if (!answer.ok) throw new Error(text || answer.status);
    if (text !== last) main.innerHTML = last = text;
    document.body.classList.remove("stale");
  } catch {
    document.body.classList.add("stale");
  }
}

setInterval(renew, 2000);
document.addEventListener("visibilitychange", renew);
