<prompt schema="code">
  <unit/><map/><player/><game/>
  <user>Which method of Unit hurts another unit?</user>
</prompt>
