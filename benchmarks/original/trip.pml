<!-- A plan with parameters and a place of several, and the task behind them. -->
<pml>
<schema name="trip">
  <system>You plan journeys for people who have never been to a place.</system>
  <user>
    <module name="plan">The journey takes <parameter name="days" length="6"/> days, and begins on <parameter name="start" length="6" default="a Monday"/>.
      <union name="place">
        <module name="coast">It goes to a coast with cliffs, seals, and small harbours. Boats leave when the weather lets them; the path along the cliffs takes five hours, and there is a lighthouse at its end.</module>
        <module name="hills">It goes to hills with vineyards. Villages are an hour's walk apart, wine is sold at the door, and a train runs down the valley every two hours until nine in the evening.</module>
      </union>
    </module>
    <module name="budget">At most <parameter name="sum" length="8"/> may be spent, half of it for beds.</module>
    Say first what must be booked, then write one line for each day.
  </user>
</schema>
<prompt schema="trip">
  <plan days="three"><hills/></plan><budget sum="300 euros"/>
  <user>We do not drive. Where do we begin?</user>
</prompt>
</pml>
