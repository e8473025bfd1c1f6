-- A build is healthy once all of its targets stand; while it builds or waits it is progressing.
local hs = {status = "Progressing", message = "The operator has not seen it yet"}
if obj.status == nil or obj.status.conditions == nil then
  return hs
end
if obj.status.observedGeneration ~= obj.metadata.generation then
  hs.message = "The operator has not seen the latest change yet"
  return hs
end
local note = ""
for _, condition in ipairs(obj.status.conditions) do
  if condition.type == "Ready" then
    hs.message = condition.reason
    if condition.message ~= nil and condition.message ~= "" then
      hs.message = condition.reason .. ": " .. condition.message
    end
    if condition.status == "True" then
      hs.status = "Healthy"
    elseif condition.status == "False" then
      hs.status = "Degraded"
    elseif condition.reason == "Suspended" then
      hs.status = "Suspended"
    end
  elseif condition.type == "ToolchainOutdated" and condition.status == "True" then
    note = "; " .. condition.message
  end
end
hs.message = hs.message .. note
return hs
