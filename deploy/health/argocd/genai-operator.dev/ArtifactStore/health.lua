-- A store is healthy once it could be written and read; one whose Secret is still to come, or whose
-- server does not answer, is progressing.
local hs = {status = "Progressing", message = "The operator has not seen it yet"}
if obj.status == nil or obj.status.conditions == nil then
  return hs
end
if obj.status.observedGeneration ~= obj.metadata.generation then
  hs.message = "The operator has not seen the latest change yet"
  return hs
end
local degraded = "Degraded"
for _, condition in ipairs(obj.status.conditions) do
  if condition.type == "Reconciling" and condition.status == "True" then
    degraded = "Progressing"
  end
end
for _, condition in ipairs(obj.status.conditions) do
  if condition.type == "Ready" then
    hs.message = condition.reason .. ": " .. condition.message
    if condition.status == "True" then
      hs.status = "Healthy"
    elseif condition.status == "False" then
      hs.status = degraded
    end
  end
end
return hs
