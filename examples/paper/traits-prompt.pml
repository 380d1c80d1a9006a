<prompt schema="traits">
  <adult/><travel/><slow/><learner/>
  <user>What kind of book should the reader try next?</user>
</prompt>
