<!-- For `vllm-promptcache explain`, with the schema in travel.pml. -->
<prompt schema="travel">
  <trip duration="three days" travellers="two parents and a girl of six">
    <maldives/>
    <plane/>
  </trip>
  <children/>
  <user>When is the best season for the Maldives?</user>
</prompt>
