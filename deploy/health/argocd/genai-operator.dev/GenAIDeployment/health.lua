-- Ready decides; one that was rolled back still serves, and the message says so.
local hs = {status = "Progressing", message = "The operator has not seen it yet"}
if obj.status == nil or obj.status.conditions == nil then
  return hs
end
if obj.status.observedGeneration ~= obj.metadata.generation then
  hs.message = "The operator has not seen the latest change yet"
  return hs
end
local serves = false
for _, condition in ipairs(obj.status.conditions) do
  if condition.type == "Ready" then
    hs.message = condition.reason .. ": " .. condition.message
    if condition.status == "True" then
      hs.status = "Healthy"
    elseif condition.status == "False" then
      hs.status = "Degraded"
    end
  elseif condition.type == "Available" and condition.status == "True" then
    serves = true
  end
end
if hs.status == "Degraded" and serves then
  hs.message = hs.message .. "; the last good revision serves"
end
return hs
