const svg = document.querySelector("svg");
const edges = [...svg.querySelectorAll(".edge")];
const tasks = [...svg.querySelectorAll(".task")];

function reach(start, from, to) {
  const seen = new Set([start]);
  const todo = [start];
  while (todo.length) {
    const here = todo.pop();
    for (const edge of edges) {
      if (edge.dataset[from] !== here) continue;
      edge.classList.add("on");
      const next = edge.dataset[to];
      if (!seen.has(next)) { seen.add(next); todo.push(next); }
    }
  }
  return seen;
}

function clear() {
  svg.classList.remove("lit");
  for (const item of svg.querySelectorAll(".on")) item.classList.remove("on");
}

function light(task) {
  clear();
  const number = task.dataset.n;
  const on = new Set([...reach(number, "a", "b"), ...reach(number, "b", "a")]);
  for (const other of tasks) if (on.has(other.dataset.n)) other.classList.add("on");
  svg.classList.add("lit");
}

for (const task of tasks) {
  task.addEventListener("mouseenter", () => light(task));
  task.addEventListener("mouseleave", clear);
  task.addEventListener("focus", () => light(task));
  task.addEventListener("blur", clear);
}
