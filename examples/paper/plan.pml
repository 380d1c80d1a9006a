<!-- The paper's third use case: one plan for many, with parameters where requests differ. -->
<schema name="plan">
  <system>You plan journeys, day by day.

<module name="journey">The journey goes to <parameter name="place" length="12"/> and takes <parameter name="duration" length="8" default="one week"/>. It begins on <parameter name="start" length="8" default="a Monday"/>, and <parameter name="travellers" length="16" default="two adults"/> travel.
Write a line for each day. A line has the day, where the travellers wake up, one thing to see before lunch, one place to eat, one thing to do after it, and where they sleep. Two days in the same place need not have two hotels. The first day begins at the airport and has nothing in it but the way to the hotel, a walk around it, and an early dinner. The last day ends at the airport three hours before departure.
Between two towns take the train where there is one, else the bus; a car is hired only where there is neither. No way takes longer than four hours, and none begins before eight in the morning. Museums are closed on Mondays. Markets are open in the morning. Churches are visited outside of services. Keep the afternoon free after two days with long ways.
The budget for all of it is <parameter name="budget" length="12" default="not limited"/>. Half of it is for beds, a quarter for food, and the rest for tickets. Say at the end what is left. Where something has to be booked, say how many days before.
</module>
<union name="season">
<module name="summer">It is summer: the middle of the day is spent in the shade, swimming is possible everywhere, and beds have to be booked two months before. Thunderstorms come in the afternoon, mostly in the mountains.
</module>
<module name="winter">It is winter: it is dark from five o'clock on, mountain passes are closed, and many hotels at the coast are, too. Museums are empty. Pack for snow, and leave a day in reserve for trains that do not run.
</module>
</union>
  </system>
</schema>
