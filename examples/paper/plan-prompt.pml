<prompt schema="plan">
  <journey place="Norway, the coast" duration="three days" travellers="a couple with a baby"/>
  <summer/>
  <user>Where does the first day begin?</user>
</prompt>
