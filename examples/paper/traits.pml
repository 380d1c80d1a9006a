<!-- The paper's second use case: a reader is described by traits, one of each kind. A union's members stand in
     each other's place, so a prompt is as long as the longest ones. -->
<schema name="traits">
  <system>You recommend books. This is what is known of the reader.

<union name="age">
<module name="child">The reader is a child of about eight years. Stories are short, with large print and a picture on most pages. Nobody dies in them for good, and they end well. Words of more than three syllables are explained where they stand, and a chapter takes no longer than ten minutes to read aloud.
</module>
<module name="teenager">The reader is a teenager of about fifteen years. The hero of a book is rarely older, and wants to be left alone by those who are. School, friends, and first love matter more than what becomes of the world, but the end of the world is welcome too. Series of three are better than single books.
</module>
<module name="adult">The reader is an adult of about forty years, with little time in the evening. A book may be as difficult as it likes if it is worth it, but it should not be longer than four hundred pages. Reviews in newspapers are read, and mistrusted. Books about people who write books are not wanted.
</module>
</union>
<union name="taste">
<module name="crime">The reader likes crime: a body on the first pages, someone who asks questions, and an answer that was there all the time. Blood is not necessary. A place that becomes familiar, a detective with one bad habit, and weather that gets worse are necessary. Spies count as crime, lawyers do not.
</module>
<module name="science">The reader likes science: how things were found out, by whom, and what they thought before. Formulas are fine where a sentence would be longer. Animals, the sea, numbers and the history of the earth are best; the brain and the universe have been read about enough.
</module>
<module name="travel">The reader likes travel: walks that take a month, trains that are late, and people who are met on the way. Maps at the front of the book are looked at before anything else. Cold places are preferred to hot ones, and mountains to beaches. Advice about restaurants is skipped.
</module>
</union>
<union name="pace">
<module name="slow">The reader reads slowly, a few pages before sleep, and forgets names. A list of persons helps. Short chapters are better than long ones, and one place is better than five.
</module>
<module name="fast">The reader reads fast, several books a week, mostly on the train. Long books are welcome. What is predictable is put away after fifty pages, and given to a neighbour.
</module>
</union>
<union name="language">
<module name="learner">English is not the reader's first language and is still being learned. Sentences should be short. Dialect, slang and puns are hard to follow, and audio books that can be slowed down help.
</module>
<module name="native">English is the reader's first language. Old books are fine as they were written, and translations are read if they are recent. Verse is read on Sundays.
</module>
</union>
  </system>
</schema>
